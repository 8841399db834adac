"""The CUDA transport on one machine: ranks write into each other's memory, several to a GPU if need be.

A rank's memory is mapped by its peers: an inbox, with a slot for the shard of each peer on another GPU, and
an outbox for those on its own. A shard goes straight from keys and values into the slots of peers, beside the
first block: carried by its kernel if that can (`RingPass.by_kernel`), else copied by engines, which take no
SM.
Peers on the rank's own GPU copy nothing: they compute with what it has laid out in its outbox. Each peer
tells when it is done with a shard, and only then gets the next. Told is by flags in device memory, which
streams (`cuda_driver`) or kernels set and await, so no host waits, and a CUDA graph can capture an iteration.
A shard may come in pieces, heads after heads, each with a flag: the first ones are up long before the last.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist

from ringexp.kernels import Destination, Remote, Sending
from ringexp.planning import ring_members
from ringexp.ring import cuda_driver as driver
from ringexp.ring.events import nothing, recorded, since
from ringexp.ring.messages import Messages
from ringexp.ring.transport import (
    Announcement,
    Arrival,
    LocalShard,
    RingPass,
    Route,
    Transfer,
    lay_out,
    shard_shape,
)

_FLAG_BYTES = 16  # as far apart as kernels want words to be
_ALIGNMENT = 512
_PIECES = 32  # of a shard, at most
_COPIES = 8  # that bring them, at most
_TAKEN, _READY = 0, 1  # flags about a peer; ready has one a piece
_BARRIER = _READY + _PIECES  # two flags, used in turn
_FLAGS = _BARRIER + 2
_COPY_ROW_BYTES = 2048
"""A token's keys, or values, in a copy: engines are slower with shorter rows."""
_COPY_BYTES = 1 << 20
"""Of a copy's keys, or values: each costs some us."""


class _Arrival:
    """As `transport.Announced`."""

    def __init__(self, held: Callable[[], torch.Tensor], announced: Callable[[], Announcement]) -> None:
        self._held, self.announced = held, announced

    def __call__(self) -> torch.Tensor:
        return self._held()


class IpcTransport:
    """`group` needs a gloo backend to exchange handles over.

    Memory, kept between iterations: a slot of the longest shard for every peer if any two ranks are on
    different GPUs, and an outbox as long if any two share one.
    """

    name = "ipc"
    capturable = True

    def __init__(
        self, device: torch.device, group: dist.ProcessGroup | None = None, key: bytes = b""
    ) -> None:
        self._group = group
        self._messages = Messages(group, (driver.SharedMemory,), key, "ipc")
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._peers = [peer for peer in range(self._world) if peer != self._rank]
        self._device = device
        self._stream = torch.cuda.Stream(device)  # of what is sent
        self._transfers: list[Transfer] = []
        self._flags_bytes = _aligned(_FLAGS * self._world * _FLAG_BYTES)
        self._outbox_bytes = self._slot_bytes = 0
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)  # flags, outbox, inbox
        self._counts = torch.zeros(2 + _PIECES, dtype=torch.int32, device=device)  # for kernels that send
        self._mappings: dict[int, int] = {}
        self._addresses: dict[int, int] = {}  # of the peers' memory
        facts = self._messages.all_gather((driver.device_id(device), driver.capability(device)))
        devices, capabilities = zip(*facts, strict=True)
        self._near = {peer for peer in self._peers if devices[peer] == devices[self._rank]}
        self._any_near, self.any_far = len(set(devices)) < self._world, len(set(devices)) > 1
        # On a shared GPU kernels that wait could keep the SMs that a rank needs to get as far as sending. All
        # ranks have to agree on pieces, so on a kernel that awaits them.
        self.announces = not self._any_near and len(set(capabilities)) == 1
        far = {devices[peer] for peer in self._peers} - {devices[self._rank]}
        self.by_kernel = all(driver.over_nvlink(device, each) for each in far)
        """Kernels that can carry shards do so; False: copy engines carry all. Slow stores hold up an SM."""
        self._barriers = 0
        self.epoch = 0

    def circulate(self, k: torch.Tensor, v: torch.Tensor, trip: RingPass) -> Generator[tuple[int, Arrival]]:
        tokens = trip.tokens
        self.reserve(_shard_bytes(k, max(tokens)))
        near = [peer for peer in ring_members(tokens) if peer in self._near]
        if near:
            self._reclaim(near)
            lay_out(k, v, _shaped(self._outbox(2 * k.nbytes), k, k.shape[1]))
            self._publish(near)
        return self._circulate(k, v, trip)

    def _circulate(self, k: torch.Tensor, v: torch.Tensor, trip: RingPass) -> Generator[tuple[int, Arrival]]:
        route = Route.of(trip.tokens, self._rank)
        k, v = (x if x[0, 0].is_contiguous() else x.contiguous() for x in (k, v))
        compute = torch.cuda.current_stream(self._device)
        to = {peer: 0 if peer in self._near else trip.carried(peer, self._rank) for peer in route.sources[1:]}
        of = {
            source: trip.tokens[source] if source in self._near else trip.carried(self._rank, source)
            for source in route.sources[1:]
        }
        # Of these hops shards come in parts, of the others whole.
        heads_first_hops = min(trip.heads_first_hops, route.hops) if self.announces else 0
        parts = _parts(k, max(trip.tokens)) if heads_first_hops else _WHOLE
        next_peers = [route.source(-hop) for hop in range(1, heads_first_hops + 1)]
        by_kernel = next_peers if trip.by_kernel and self.by_kernel else []
        sending, took = self._sending(k, v, {peer: to[peer] for peer in by_kernel if to[peer]}, parts)
        copied = {peer: count for peer, count in to.items() if count and peer not in took}
        handed_back: set[int] = set()

        def post(hops: Iterable[int]) -> None:
            peers = [route.source(-hop) for hop in hops]
            in_parts = {peer: copied[peer] for peer in peers if peer in copied and peer in next_peers}
            whole = {peer: copied[peer] for peer in peers if peer in copied and peer not in next_peers}
            sent = dict(took)
            if in_parts or whole:
                self._stream.wait_stream(compute)  # for keys and values, and lock-step hops for compute
                with torch.cuda.stream(self._stream):
                    sent |= self._send(k, v, in_parts, parts) | self._send(k, v, whole, _WHOLE)
                for x in (k, v):
                    x.record_stream(self._stream)
            self._transfers += [sent.get(peer, nothing) for peer in peers]

        ahead = min(trip.prefetch_hops or route.hops, route.hops)
        post(range(1, ahead + 1))
        yield self._rank, LocalShard(k, v, sending)
        for hop, source in enumerate(route.sources[1:], start=1):

            def held(hop: int = hop, source: int = source) -> torch.Tensor:
                if of[source]:
                    self._await(source, parts.pieces if hop <= heads_first_hops else 1)
                if hop + ahead <= route.hops:
                    post([hop + ahead])
                return self._shard_of(source, k, of[source])

            def announce(source: int = source) -> Announcement:
                assert of[source], source
                handed_back.add(source)
                words, taken = self._words(source, parts.pieces), self._flag(source, _TAKEN, self._rank)
                return Announcement(self._shard_of(source, k, of[source]), words, taken)

            yield source, _Arrival(held, announce)
        # What was computed with these shards is over when the stream gets here.
        self._hand_back([source for source in of if of[source] and source not in handed_back])
        if copied:  # else a graph would not know the stream
            compute.wait_stream(self._stream)

    def _sending(
        self, k: torch.Tensor, v: torch.Tensor, counts: Mapping[int, int], parts: _Parts
    ) -> tuple[Sending | None, dict[int, Transfer]]:
        """What brings so many first tokens into each peer's slot, and when which transfer was under way."""
        if not counts:
            return None, {}
        destinations = []
        for peer, count in counts.items():
            _, batch, length, heads, dim = shard_shape(k, count)
            shape, strides = (batch, heads, length, dim), (length * heads * dim, dim, heads * dim, 1)
            to_k, to_v = (Remote(half, shape, strides, k.dtype) for half in self._halves(peer, k, count))
            free, ready = self._flag(self._rank, _TAKEN, peer), self._flag(peer, _READY, self._rank)
            destinations.append(Destination(to_k, to_v, free, ready))
        took = k.new_empty(1, dtype=torch.int32)
        keys, values = (x.transpose(1, 2) for x in (k, v))
        sending = Sending(keys, values, destinations, parts.pieces, self._counts, took)
        return sending, dict.fromkeys(counts, lambda origin: (None, took.item() / 1e6))

    def _send(
        self, k: torch.Tensor, v: torch.Tensor, counts: Mapping[int, int], parts: _Parts
    ) -> dict[int, Transfer]:
        """Copy so many first tokens of a shard into each peer's slot, on the current stream, once those are
        free, and say so.

        Returns when which transfer was under way.
        """
        stream = torch.cuda.current_stream(self._device)
        pieces, copies = parts
        heads, row_bytes = k.shape[2] // copies, k[0, 0].nbytes
        self._reclaim(list(counts))
        begun, ended = {}, {}
        for turn in range(copies):
            columns, start = slice(turn * heads, (turn + 1) * heads), turn * row_bytes // copies
            there = range(turn * pieces // copies, (turn + 1) * pieces // copies)
            for peer, count in counts.items():
                if not turn:
                    begun[peer] = recorded()
                for half, x in zip(self._halves(peer, k, count), (k, v), strict=True):
                    driver.copy_rows(stream, half + start, row_bytes, x[:, :count, columns])
                driver.flags(stream, given=[self._flag(peer, _READY + piece, self._rank) for piece in there])
                if turn == copies - 1:
                    ended[peer] = recorded()
        return {peer: partial(since, begun[peer], ended[peer]) for peer in counts}

    def _words(self, source: int, pieces: int) -> torch.Tensor:
        """The flags of a source's pieces as tensor, int32 [pieces]."""
        flags = self._memory[: self._flags_bytes].view(-1, _FLAG_BYTES).view(torch.int32)[:, 0]
        return flags[source * _FLAGS + _READY :][:pieces]

    def _shard_of(self, source: int, k: torch.Tensor, tokens: int) -> torch.Tensor:
        """The first tokens of another rank's shard, else like keys k, where this rank finds them."""
        if not tokens:
            return k.new_empty(shard_shape(k, 0))
        near = source in self._near
        address = self._address(source) + self._flags_bytes if near else self._slot(self._rank, source)
        return _shaped(driver.view(address, _shard_bytes(k, tokens), self._device), k, tokens)

    def _await(self, source: int, pieces: int = 1) -> None:
        """Hold the current stream until there is something from the source for this rank."""
        stream = torch.cuda.current_stream(self._device)
        ready = [self._flag(self._rank, _READY + piece, source) for piece in range(pieces)]
        driver.flags(stream, taken=ready)

    def _hand_back(self, sources: Sequence[int]) -> None:
        """Say that this rank is done with what the sources had for it."""
        stream = torch.cuda.current_stream(self._device)
        driver.flags(stream, given=[self._flag(source, _TAKEN, self._rank) for source in sources])

    def _reclaim(self, peers: Sequence[int]) -> None:
        """Hold the current stream until these peers are done with what this rank last had for them."""
        stream = torch.cuda.current_stream(self._device)
        driver.flags(stream, taken=[self._flag(self._rank, _TAKEN, peer) for peer in peers])

    def _publish(self, peers: Sequence[int]) -> None:
        stream = torch.cuda.current_stream(self._device)
        driver.flags(stream, given=[self._flag(peer, _READY, self._rank) for peer in peers])

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
            self._hand_back([peer])

    def take_transfers(self) -> list[Transfer]:
        taken, self._transfers = self._transfers, []
        return taken

    def barrier(self) -> None:
        self._make_room(0, 0)
        stream = torch.cuda.current_stream(self._device)
        flag = _BARRIER + self._barriers % 2  # a peer may reach the next barrier before this rank leaves this
        self._barriers += 1
        driver.flags(stream, given=[self._flag(peer, flag, self._rank) for peer in self._peers])
        driver.flags(stream, taken=[self._flag(self._rank, flag, peer) for peer in self._peers])

    def close(self) -> None:
        torch.cuda.synchronize(self._device)
        for mapping in self._mappings.values():
            driver.close_shared(mapping)
        self._mappings, self._addresses = {}, {}
        dist.barrier(self._group)  # peers let go before the memory does
        self._memory = self._memory.new_empty(0)

    def _address(self, owner: int) -> int:
        return self._memory.data_ptr() if owner == self._rank else self._addresses[owner]

    def _flag(self, owner: int, flag: int, peer: int) -> int:
        """Address of a flag in `owner`'s memory about `peer`."""
        return self._address(owner) + (peer * _FLAGS + flag) * _FLAG_BYTES

    def _slot(self, owner: int, source: int) -> int:
        """Address of what `source` writes into `owner`'s inbox."""
        inbox = self._address(owner) + self._flags_bytes + self._outbox_bytes
        return inbox + (source - (source > owner)) * self._slot_bytes

    def _halves(self, peer: int, k: torch.Tensor, tokens: int) -> tuple[int, int]:
        """Addresses of so many keys, and values, in this rank's slot of a peer."""
        keys = self._slot(peer, self._rank)
        return keys, keys + _shard_bytes(k, tokens) // 2

    def _outbox(self, num_bytes: int) -> torch.Tensor:
        return self._memory[self._flags_bytes :][:num_bytes]

    def reserve(self, num_bytes: int) -> None:
        self._make_room(num_bytes if self._any_near else 0, num_bytes if self.any_far else 0)

    def _make_room(self, outbox_bytes: int, slot_bytes: int) -> None:
        """Make outboxes and slots of all ranks at least this long; all call it with the same numbers."""
        if self._memory.nbytes and outbox_bytes <= self._outbox_bytes and slot_bytes <= self._slot_bytes:
            return
        self.close()
        self._outbox_bytes = max(self._outbox_bytes, _aligned(outbox_bytes))
        self._slot_bytes = max(self._slot_bytes, _aligned(slot_bytes))
        needed = self._flags_bytes + self._outbox_bytes + self._slot_bytes * len(self._peers)
        self._memory = torch.empty(needed, dtype=torch.uint8, device=self._device)
        flags = self._memory[: self._flags_bytes].view(-1, _FLAG_BYTES).view(torch.int32)
        flags.zero_()
        flags[_TAKEN : _FLAGS * self._world : _FLAGS] = 1
        torch.cuda.synchronize(self._device)
        shared = self._messages.all_gather(driver.export(self._memory))
        for peer in self._peers:
            self._mappings[peer], self._addresses[peer] = driver.open_shared(shared[peer])
        self._barriers = 0
        self.epoch += 1
        dist.barrier(self._group)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class _Parts(NamedTuple):
    """How a shard comes: the heads of each piece are alike, and each copy brings as many pieces."""

    pieces: int
    copies: int


_WHOLE = _Parts(1, 1)


def _parts(k: torch.Tensor, tokens: int) -> _Parts:
    """Of a shard like the keys k, of so many tokens; pieces cost next to nothing, so they are many."""
    heads, row_bytes = k.shape[2], k[0, 0].nbytes
    most = min(_COPIES, row_bytes // _COPY_ROW_BYTES, k.shape[0] * tokens * row_bytes // _COPY_BYTES)
    copies = next(count for count in range(max(most, 1), 0, -1) if heads % count == 0)
    most = min(_PIECES, heads)
    return _Parts(next(n for n in range(most, 0, -1) if heads % n == n % copies == 0), copies)


def _shard_bytes(k: torch.Tensor, tokens: int) -> int:
    """Keys and values of so many tokens of the model of the keys k."""
    return 2 * k.nbytes // k.shape[1] * tokens


def _shaped(memory: torch.Tensor, k: torch.Tensor, tokens: int) -> torch.Tensor:
    """A shard's bytes as the shard [2, B, tokens, Hkv, D], of the same model as the keys k."""
    return memory.view(k.dtype).view(shard_shape(k, tokens))
