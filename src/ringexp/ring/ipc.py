"""The CUDA transport on one machine: ranks write into each other's memory, several to a GPU if need be.

A rank's memory is mapped by its peers: an inbox, with a slot for the shard of each peer on another GPU, and
an outbox for those on its own. A shard goes straight from keys and values into the slots of peers, beside the
first block, copied by engines that take no SM. Peers on the rank's own GPU copy nothing: they compute with
what it has laid out in its outbox. Each peer tells when it is done with a shard, and only then gets the next.
Told is by flags in device memory that streams set and await (`cuda_driver`), so no host waits, no kernel
spins while a peer is late, and a CUDA graph can capture an iteration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist

from ringexp.planning import ring_members
from ringexp.ring import cuda_driver as driver
from ringexp.ring.stream import nothing, recorded, since
from ringexp.ring.transport import Arrival, Route, Transfer, lay_out, shard_shape

_FLAG_BYTES = 4
_ALIGNMENT = 512
_READY, _TAKEN, _BARRIER = range(3)  # rows of flags, a flag a peer; the barrier has two rows, used in turn
_ROWS = 4


class IpcTransport:
    """`group` needs a gloo backend to exchange handles over.

    Memory, kept between iterations: a slot of the longest shard for every peer if any two ranks are on
    different GPUs, and an outbox as long if any two share one.
    """

    name = "ipc"
    capturable = True

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._peers = [peer for peer in range(self._world) if peer != self._rank]
        self._device = device
        self._stream = torch.cuda.Stream(device)  # of what is sent
        self._transfers: list[Transfer] = []
        self._flags_bytes = _aligned(_ROWS * self._world * _FLAG_BYTES)
        self._outbox_bytes = self._slot_bytes = 0
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)  # flags, outbox, inbox
        self._mappings: dict[int, int] = {}
        self._addresses: dict[int, int] = {}  # of the peers' memory
        devices: list[object] = [None] * self._world
        dist.all_gather_object(devices, driver.device_id(device), group)
        self._near = {peer for peer in self._peers if devices[peer] == devices[self._rank]}
        self._any_near, self._any_far = len(set(devices)) < self._world, len(set(devices)) > 1
        self.together = not self._any_far
        self._barriers = 0
        self.epoch = 0

    def circulate(
        self, k: torch.Tensor, v: torch.Tensor, tokens: Sequence[int], prefetch_hops: int | None
    ) -> Iterator[tuple[int, Arrival]]:
        self.reserve(_shard_bytes(k, max(tokens)))
        near = [peer for peer in ring_members(tokens) if peer in self._near]
        if near:
            self._reclaim(near)
            lay_out(k, v, _shaped(self._outbox(2 * k.nbytes), k, k.shape[1]))
            self._publish(near)
        return self._circulate(k, v, tokens, prefetch_hops)

    def _circulate(
        self, k: torch.Tensor, v: torch.Tensor, tokens: Sequence[int], prefetch_hops: int | None
    ) -> Iterator[tuple[int, Arrival]]:
        route = Route.of(tokens, self._rank)
        k, v = (x if x[0, 0].is_contiguous() else x.contiguous() for x in (k, v))
        compute = torch.cuda.current_stream(self._device)

        def post(hop: int) -> None:
            peer = route.source(-hop)
            if peer in self._near:
                self._transfers.append(nothing)
                return
            self._stream.wait_stream(compute)  # for keys and values, and lock-step hops for compute
            with torch.cuda.stream(self._stream):
                self._send(k, v, peer)
            for x in (k, v):
                x.record_stream(self._stream)

        ahead = min(prefetch_hops or route.hops, route.hops)
        for hop in range(1, ahead + 1):
            post(hop)
        yield self._rank, lambda: (k, v)
        for hop, source in enumerate(route.sources[1:], start=1):

            def arrival(hop: int = hop, source: int = source) -> torch.Tensor:
                self._await(source)
                if hop + ahead <= route.hops:
                    post(hop + ahead)
                return self._shard_of(source, k, tokens[source])

            yield source, arrival
        for source in route.sources[1:]:  # what was computed with its shard is over when the stream gets here
            self._hand_back(source)
        if not self._near.issuperset(route.sources[1:]):  # else a graph would not know the stream
            compute.wait_stream(self._stream)

    def _send(self, k: torch.Tensor, v: torch.Tensor, peer: int) -> None:
        """Copy a shard into a peer's slot, on the current stream, once that is free, and say so."""
        self._reclaim([peer])
        begun, start = recorded(), self._slot(peer, self._rank)
        for number, x in enumerate((k, v)):
            driver.copy_rows(torch.cuda.current_stream(self._device), start + number * k.nbytes, x)
        self._publish([peer])
        self._transfers.append(partial(since, begun, recorded()))

    def _shard_of(self, source: int, k: torch.Tensor, tokens: int) -> torch.Tensor:
        """Another rank's shard, like keys k but for its length, where this rank finds it."""
        near = source in self._near
        address = self._address(source) + self._flags_bytes if near else self._slot(self._rank, source)
        return _shaped(driver.view(address, _shard_bytes(k, tokens), self._device), k, tokens)

    def _await(self, source: int) -> None:
        """Hold the current stream until there is something from the source for this rank."""
        stream = torch.cuda.current_stream(self._device)
        ready = self._flag(self._rank, _READY, source)
        driver.await_flag(stream, ready, 1)
        driver.set_flag(stream, ready, 0)

    def _hand_back(self, source: int) -> None:
        """Say that this rank is done with what the source had for it."""
        stream = torch.cuda.current_stream(self._device)
        driver.set_flag(stream, self._flag(source, _TAKEN, self._rank), 1)

    def _reclaim(self, peers: Sequence[int]) -> None:
        """Hold the current stream until these peers are done with what this rank last had for them."""
        stream = torch.cuda.current_stream(self._device)
        for peer in peers:
            taken = self._flag(self._rank, _TAKEN, peer)
            driver.await_flag(stream, taken, 1)
            driver.set_flag(stream, taken, 0)

    def _publish(self, peers: Sequence[int]) -> None:
        stream = torch.cuda.current_stream(self._device)
        for peer in peers:
            driver.set_flag(stream, self._flag(peer, _READY, self._rank), 1)

    def exchange(
        self,
        sends: Mapping[int, torch.Tensor],
        receives: Mapping[int, torch.Tensor],
        sizes: Sequence[Sequence[int]],
    ) -> None:
        starts = [[sum(row[:peer]) for peer in range(self._world)] for row in sizes]
        self._make_room(outbox_bytes=max(map(sum, sizes)), slot_bytes=0)
        self._reclaim(self._peers)
        for peer, tensor in sends.items():
            start, size = starts[self._rank][peer], sizes[self._rank][peer]
            assert tensor.nbytes == size, (peer, tensor.nbytes, size)
            self._outbox(start + size)[start:].copy_(tensor.contiguous().view(-1).view(torch.uint8))
        self._publish(self._peers)
        stream = torch.cuda.current_stream(self._device)
        for peer in self._peers:
            self._await(peer)
            if peer in receives:
                source = self._addresses[peer] + self._flags_bytes + starts[peer][self._rank]
                driver.copy(stream, receives[peer].data_ptr(), source, receives[peer].nbytes)
            self._hand_back(peer)

    def take_transfers(self) -> list[Transfer]:
        taken, self._transfers = self._transfers, []
        return taken

    def barrier(self) -> None:
        self._make_room(0, 0)
        stream = torch.cuda.current_stream(self._device)
        row = _BARRIER + self._barriers % 2  # a peer may reach the next barrier before this rank leaves this
        self._barriers += 1
        for peer in self._peers:
            driver.set_flag(stream, self._flag(peer, row, self._rank), 1)
        for peer in self._peers:
            flag = self._flag(self._rank, row, peer)
            driver.await_flag(stream, flag, 1)
            driver.set_flag(stream, flag, 0)

    def close(self) -> None:
        torch.cuda.synchronize(self._device)
        for mapping in self._mappings.values():
            driver.close_shared(mapping)
        self._mappings, self._addresses = {}, {}
        dist.barrier(self._group)  # peers let go before the memory does
        self._memory = self._memory.new_empty(0)

    def _address(self, owner: int) -> int:
        return self._memory.data_ptr() if owner == self._rank else self._addresses[owner]

    def _flag(self, owner: int, row: int, peer: int) -> int:
        """Address of a flag in `owner`'s memory about `peer`."""
        return self._address(owner) + (row * self._world + peer) * _FLAG_BYTES

    def _slot(self, owner: int, source: int) -> int:
        """Address of what `source` writes into `owner`'s inbox."""
        inbox = self._address(owner) + self._flags_bytes + self._outbox_bytes
        return inbox + (source - (source > owner)) * self._slot_bytes

    def _outbox(self, num_bytes: int) -> torch.Tensor:
        return self._memory[self._flags_bytes :][:num_bytes]

    def reserve(self, num_bytes: int) -> None:
        self._make_room(num_bytes if self._any_near else 0, num_bytes if self._any_far else 0)

    def _make_room(self, outbox_bytes: int, slot_bytes: int) -> None:
        """Make outboxes and slots of all ranks at least this long; all call it with the same numbers."""
        if self._memory.nbytes and outbox_bytes <= self._outbox_bytes and slot_bytes <= self._slot_bytes:
            return
        self.close()
        self._outbox_bytes = max(self._outbox_bytes, _aligned(outbox_bytes))
        self._slot_bytes = max(self._slot_bytes, _aligned(slot_bytes))
        needed = self._flags_bytes + self._outbox_bytes + self._slot_bytes * len(self._peers)
        self._memory = torch.empty(needed, dtype=torch.uint8, device=self._device)
        flags = self._memory[: self._flags_bytes].view(torch.int32)
        flags.zero_()
        flags[_TAKEN * self._world :][: self._world] = 1
        torch.cuda.synchronize(self._device)
        shared: list[driver.SharedMemory | None] = [None] * self._world
        dist.all_gather_object(shared, driver.export(self._memory), self._group)
        for peer in self._peers:
            memory = shared[peer]
            assert memory is not None
            self._mappings[peer], self._addresses[peer] = driver.open_shared(memory)
        self._barriers = 0
        self.epoch += 1
        dist.barrier(self._group)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _shard_bytes(k: torch.Tensor, tokens: int) -> int:
    """Keys and values of so many tokens of the model of the keys k."""
    return 2 * k.nbytes // k.shape[1] * tokens


def _shaped(memory: torch.Tensor, k: torch.Tensor, tokens: int) -> torch.Tensor:
    """A shard's bytes as the shard [2, B, tokens, Hkv, D], of the same model as the keys k."""
    return memory.view(k.dtype).view(shard_shape(k, tokens))
