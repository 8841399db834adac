"""One pass of all shards between the GPUs of one machine, as one rank carries it out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ringexp.kernels import ArrivalFlags, Destination, Remote, Sending
from ringexp.ring import cuda_driver as driver
from ringexp.ring.events import nothing, recorded, since
from ringexp.ring.ipc_memory import READY, TAKEN, PeerMemory
from ringexp.ring.ipc_pieces import WHOLE, Pieces, pieces_of, shard_bytes
from ringexp.ring.ipc_signals import Signals
from ringexp.ring.pending import PendingShard
from ringexp.ring.route import Route
from ringexp.ring.transfers import Transfer, Transfers
from ringexp.ring.transport import RingPass, shard_shape


@dataclass(frozen=True)
class Surroundings:
    """Everything that stays the same from pass to pass on one rank.

    Attributes:
        near: The peers on this rank's own GPU.
        stream: The stream on which this rank sends.
        counts: Zeros for kernels that send, int32.
    """

    rank: int
    device: torch.device
    near: frozenset[int]
    memory: PeerMemory
    signals: Signals
    stream: torch.cuda.Stream
    counts: torch.Tensor
    transfers: Transfers


class IpcPass:
    """Sends this rank's keys and values [B, L, Hkv, D] to its peers, and yields theirs.

    announces: shards of the first hops come in pieces. kernel_sends: kernels here may carry shards.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        k: torch.Tensor,
        v: torch.Tensor,
        ring_pass: RingPass,
        announces: bool,
        kernel_sends: bool,
    ) -> None:
        self._here = here = surroundings
        self._route = route = Route.of(ring_pass.tokens, here.rank)
        self._k, self._v = (x if x[0, 0].is_contiguous() else x.contiguous() for x in (k, v))
        self._compute = torch.cuda.current_stream(here.device)
        others = route.sources[1:]
        # Tokens are carried from a shard's first one to the last that is needed.
        to_peers = {p: 0 if p in here.near else ring_pass.needed_of(p, here.rank).stop for p in others}
        self._from_sources = {
            p: ring_pass.tokens[p] if p in here.near else ring_pass.needed_of(here.rank, p).stop
            for p in others
        }
        # Shards of these hops come in pieces, those of the others whole.
        self._heads_first_hops = min(ring_pass.heads_first_hops, route.hops) if announces else 0
        self._pieces = pieces_of(k, max(ring_pass.tokens)) if self._heads_first_hops else WHOLE
        self._next_peers = [route.source(-hop) for hop in range(1, self._heads_first_hops + 1)]
        by_kernel = self._next_peers if ring_pass.kernel_sends and kernel_sends else []
        self._sending, self._sent = self._sent_by_kernel({p: to_peers[p] for p in by_kernel if to_peers[p]})
        self._copied = {p: count for p, count in to_peers.items() if count and p not in self._sent}
        self._ahead = min(ring_pass.prefetch_hops or route.hops, route.hops)
        self._given_back: set[int] = set()

    def shards(self) -> Generator[PendingShard]:
        """Send and yield shards as `Transport.circulate` says."""
        self._post(range(1, self._ahead + 1))
        yield PendingShard.local(self._here.rank, self._k, self._v, self._sending)
        for hop, source in enumerate(self._route.sources[1:], start=1):
            announce = partial(self._announce, source) if hop <= self._heads_first_hops else None
            yield PendingShard(source, partial(self._receive, hop, source), announce)
        # What was computed with these shards is over when the stream gets here.
        read = [p for p, count in self._from_sources.items() if count and p not in self._given_back]
        self._here.signals.give_back(read)
        if self._copied:  # else a graph would not know the stream
            self._compute.wait_stream(self._here.stream)

    def _receive(self, hop: int, source: int) -> torch.Tensor:
        if self._from_sources[source]:
            pieces = self._pieces.number if hop <= self._heads_first_hops else 1
            self._here.signals.wait_for(source, pieces)
        if hop + self._ahead <= self._route.hops:
            self._post([hop + self._ahead])
        return self._shard_of(source)

    def _announce(self, source: int, waited: torch.Tensor) -> tuple[torch.Tensor, ArrivalFlags]:
        memory = self._here.memory
        assert self._from_sources[source], source
        self._given_back.add(source)
        words, read_flag = (
            memory.ready_words(source, self._pieces.number),
            memory.flag(source, TAKEN, self._here.rank),
        )
        return self._shard_of(source), ArrivalFlags(words, waited, read_flag)

    def _shard_of(self, source: int) -> torch.Tensor:
        """Return another rank's shard, as many first tokens as are needed, where this rank reads it."""
        tokens, here = self._from_sources[source], self._here
        if not tokens:
            return self._k.new_empty(shard_shape(self._k, 0))
        memory = here.memory
        address = memory.outbox_of(source) if source in here.near else memory.slot(here.rank, source)
        view = driver.view(address, shard_bytes(self._k, tokens), here.device)
        return view.view(self._k.dtype).view(shard_shape(self._k, tokens))

    def _post(self, hops: Iterable[int]) -> None:
        """Begin to send this rank's shard to the peers that it reaches with these hops."""
        peers = [self._route.source(-hop) for hop in hops]
        in_pieces = {p: self._copied[p] for p in peers if p in self._copied and p in self._next_peers}
        whole = {p: self._copied[p] for p in peers if p in self._copied and p not in self._next_peers}
        sent = dict(self._sent)
        if in_pieces or whole:
            stream = self._here.stream
            stream.wait_stream(self._compute)  # for keys and values, and lock-step hops for compute
            with torch.cuda.stream(stream):
                sent |= self._copy(in_pieces, self._pieces) | self._copy(whole, WHOLE)
            for x in (self._k, self._v):
                x.record_stream(stream)
        self._here.transfers.add([sent.get(peer, nothing) for peer in peers])

    def _copy(self, counts: Mapping[int, int], pieces: Pieces) -> dict[int, Transfer]:
        """Copy the first tokens of the shard into peers' slots, on the current stream, and publish them.

        Args:
            counts: The number of tokens per peer. The stream waits until the peers' slots are free.
            pieces: How the shard is cut.

        Returns:
            The times of the transfer to each peer.
        """
        k, v, signals = self._k, self._v, self._here.signals
        stream = torch.cuda.current_stream(self._here.device)
        heads, row_bytes = k.shape[2] // pieces.copies, k[0, 0].nbytes
        signals.reclaim(list(counts))
        begun, ended = {}, {}
        for turn in range(pieces.copies):
            columns, start = slice(turn * heads, (turn + 1) * heads), turn * row_bytes // pieces.copies
            copied = range(turn * pieces.number // pieces.copies, (turn + 1) * pieces.number // pieces.copies)
            for peer, count in counts.items():
                if not turn:
                    begun[peer] = recorded()
                for half, x in zip(self._halves(peer, count), (k, v), strict=True):
                    driver.copy_rows(stream, half + start, row_bytes, x[:, :count, columns])
                signals.publish([peer], copied)
                if turn == pieces.copies - 1:
                    ended[peer] = recorded()
        return {peer: partial(since, begun[peer], ended[peer]) for peer in counts}

    def _sent_by_kernel(self, counts: Mapping[int, int]) -> tuple[Sending | None, dict[int, Transfer]]:
        """Describe what a kernel has to send: the number of first tokens per peer.

        Returns:
            The description, None if there is nothing to send, and the times of the transfer to each peer.
        """
        if not counts:
            return None, {}
        k, memory, rank = self._k, self._here.memory, self._here.rank
        destinations = []
        for peer, count in counts.items():
            _, batch, length, heads, dim = shard_shape(k, count)
            shape, strides = (batch, heads, length, dim), (length * heads * dim, dim, heads * dim, 1)
            to_k, to_v = (Remote(half, shape, strides, k.dtype) for half in self._halves(peer, count))
            free, ready = memory.flag(rank, TAKEN, peer), memory.flag(peer, READY, rank)
            destinations.append(Destination(to_k, to_v, free, ready))
        took = k.new_empty(1, dtype=torch.int32)
        keys, values = (x.transpose(1, 2) for x in (k, self._v))
        sending = Sending(keys, values, destinations, self._pieces.number, self._here.counts, took)
        return sending, dict.fromkeys(counts, lambda origin: (None, took.item() / 1e6))

    def _halves(self, peer: int, tokens: int) -> tuple[int, int]:
        """Return the addresses of this many keys, and values, in this rank's slot at a peer."""
        keys = self._here.memory.slot(peer, self._here.rank)
        return keys, keys + shard_bytes(self._k, tokens) // 2
