"""The CUDA transport on one machine: ranks copy from each other's memory, several to a GPU if need be.

Every rank has an outbox that its peers have mapped. It lays its shard there and tells each peer; each peer
copies it when it likes and tells back, and only then is the outbox filled anew. A peer on the same GPU copies
nothing: it computes with what is in the outbox. Told is by flags in device memory that streams set and await
(`cuda_driver`), so nobody's host waits, no kernel spins while a peer is late, and a CUDA graph can capture an
iteration. Between GPUs copy engines do the copying.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist

from ringexp.planning import ring_members
from ringexp.ring import cuda_driver as driver
from ringexp.ring.stream import HopStream, recorded
from ringexp.ring.transport import Arrival, Route, Transfer, lay_out, shard_shape

_FLAG_BYTES = 4
_ALIGNMENT = 512
_READY, _TAKEN, _BARRIER = range(3)  # rows of flags, a flag a peer; the barrier has two rows, used in turn
_ROWS = 4


class IpcTransport:
    """Shards straight from their owner's memory; `group` needs a gloo backend to exchange handles over.

    Memory beside the shards in flight: one outbox of the longest shard, kept between iterations.
    """

    name = "ipc"
    capturable = True

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._peers = [peer for peer in range(self._world) if peer != self._rank]
        self._device = device
        self._hops = HopStream(device, self._rank)
        self._flags_bytes = -(-_ROWS * self._world * _FLAG_BYTES // _ALIGNMENT) * _ALIGNMENT
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)  # flags, then the outbox
        self._mappings: dict[int, int] = {}
        self._addresses: dict[int, int] = {}  # of the peers' memory
        self._near = self._on_one_device()
        self.together = len(self._near) == len(self._peers)
        self._barriers = 0
        self.epoch = 0

    def _on_one_device(self) -> list[int]:
        """The peers whose GPU is this rank's, too; all ranks ask together."""
        devices: list[object] = [None] * self._world
        dist.all_gather_object(devices, driver.device_id(self._device), self._group)
        return [peer for peer in self._peers if devices[peer] == devices[self._rank]]

    def circulate(
        self, k: torch.Tensor, v: torch.Tensor, tokens: Sequence[int], prefetch_hops: int | None
    ) -> Iterator[tuple[int, Arrival]]:
        num_bytes = 2 * k.nbytes
        self.reserve(num_bytes // k.shape[1] * max(tokens))
        peers = [peer for peer in ring_members(tokens) if peer != self._rank]
        sent = self._outbox(num_bytes).view(k.dtype).view(shard_shape(k, k.shape[1]))
        if peers:
            self._reclaim(peers)
            lay_out(k, v, sent)
            self._publish(peers)
        near = {peer: partial(self._at_hand, peer, k, tokens[peer]) for peer in peers if peer in self._near}
        return self._circulate(
            self._hops.circulate(k, v, sent, tokens, prefetch_hops, self._receive, near), near
        )

    def _circulate(
        self, hops: Iterator[tuple[int, Arrival]], near: Iterable[int]
    ) -> Iterator[tuple[int, Arrival]]:
        yield from hops
        for peer in near:  # what was computed with its outbox is over when the stream gets here
            self._take(peer, None)

    def _at_hand(self, source: int, k: torch.Tensor, tokens: int) -> torch.Tensor:
        """The shard [2, B, tokens, Hkv, D] in the source's outbox, once it is filled."""
        self._await(source)
        shape = shard_shape(k, tokens)
        num_bytes = math.prod(shape) * k.element_size()
        memory = driver.view(self._addresses[source] + self._flags_bytes, num_bytes, self._device)
        return memory.view(k.dtype).view(shape)

    def _receive(self, shards: Sequence[torch.Tensor], hop: int, route: Route) -> torch.cuda.Event:
        source = route.source(hop)
        self._await(source)
        begun = recorded()
        self._take(source, shards[hop])
        return begun

    def _await(self, source: int) -> None:
        """Hold the current stream until the source's outbox is filled for this rank."""
        stream = torch.cuda.current_stream(self._device)
        ready = self._flag(self._rank, _READY, source)
        driver.await_flag(stream, ready, 1)
        driver.set_flag(stream, ready, 0)

    def _take(self, source: int, into: torch.Tensor | None, offset: int = 0) -> None:
        """Copy from the source's outbox, on the current stream, and say so."""
        stream = torch.cuda.current_stream(self._device)
        if into is not None:
            start = self._addresses[source] + self._flags_bytes + offset
            driver.copy(stream, into.data_ptr(), start, into.nbytes)
        driver.set_flag(stream, self._flag(source, _TAKEN, self._rank), 1)

    def _reclaim(self, peers: Sequence[int]) -> None:
        """Hold the current stream until these peers have copied what was last in the outbox for them."""
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
        self.reserve(max(map(sum, sizes)))
        self._reclaim(self._peers)
        for peer, tensor in sends.items():
            start, size = starts[self._rank][peer], sizes[self._rank][peer]
            assert tensor.nbytes == size, (peer, tensor.nbytes, size)
            self._outbox(start + size)[start:].copy_(tensor.contiguous().view(-1).view(torch.uint8))
        self._publish(self._peers)
        for peer in self._peers:
            self._await(peer)
            self._take(peer, receives.get(peer), starts[peer][self._rank])

    def take_transfers(self) -> list[Transfer]:
        return self._hops.take_transfers()

    def barrier(self) -> None:
        self.reserve(0)
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

    def _flag(self, owner: int, row: int, peer: int) -> int:
        """Address of a flag in `owner`'s memory about `peer`."""
        base = self._memory.data_ptr() if owner == self._rank else self._addresses[owner]
        return base + (row * self._world + peer) * _FLAG_BYTES

    def _outbox(self, num_bytes: int) -> torch.Tensor:
        return self._memory[self._flags_bytes :][:num_bytes]

    def reserve(self, num_bytes: int) -> None:
        """Make the outboxes of all ranks at least this long; all call it with the same number."""
        needed = self._flags_bytes + num_bytes
        if self._memory.nbytes >= needed:
            return
        self.close()
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
