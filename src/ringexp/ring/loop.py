"""Ring attention over one plan: own queries stay, keys/values of all ranks come by.

Batches of unequal prompts are padded on the left. What a sequence attends to is then a suffix of every shard,
so its blocks are full or causal rectangles like any others, and no kernel needs a mask.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

import torch

from ringexp.kernels import Arriving, FusedLimits, Kernel, KeySpan, OnlineSoftmax, Sending
from ringexp.planning import BlockShape, Plan, runs
from ringexp.ring.clock import Clock
from ringexp.ring.fused import Launch, launches
from ringexp.ring.transport import Announced, Arrival, LocalShard, RingPass, Route, Transport


@dataclass(frozen=True)
class RingContext:
    """What one rank needs to take part in the ring.

    capacity: how many slots the cache that a model is asked for is to have; None: as many as are filled.
    held: slots that it has filled already, by the chunks before.
    """

    plan: Plan
    rank: int
    transport: Transport
    kernel: Kernel
    clock: Clock
    prefetch_hops: int | None = None
    capacity: int | None = None
    held: int = 0


def ring_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ring: RingContext, softmax_scale: float | None = None
) -> torch.Tensor:
    """Exact attention of this rank's queries over the keys/values of all ranks.

    q: [B, Lq, H, D], k and v: [B, Lkv, Hkv, D] for this rank's positions, heads not expanded; Lkv is more
    than Lq where keys/values of earlier chunks are there. Returns
    [B, Lq, H, D], contiguous, in q's dtype; 0 for padding. `softmax_scale` multiplies the scores; None means
    1/sqrt(D). Partial results are merged by online softmax in float32 (Milakov and Gimelshein 2018; Liu et
    al. 2023).
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    if not ring.plan.aligned:
        k, v = reshard(torch.stack((k, v)), ring)
    starts = runs(ring.plan.starts or [0] * q.shape[0])
    fused_limits = _joint(ring, len(starts))
    rounds = _rounds(ring, [start for _, start in starts], fused_limits)
    heads_first_hops = fused_limits.spans - 1 if fused_limits else 0
    trip = RingPass(
        ring.plan.kv_tokens, ring.prefetch_hops, ring.plan.needed, heads_first_hops, rounds[0].joined
    )
    with closing(ring.transport.circulate(k, v, trip)) as arriving:
        groups = [
            (sequences, _Rows(q[sequences], [each.launches[number] for each in rounds], ring.kernel))
            for number, (sequences, _) in enumerate(starts)
        ]
        for number, each in enumerate(rounds):
            shards = _taken_up(dict(islice(arriving, len(each.sources))), each.wanted, ring)
            for sequences, rows in groups:
                rows.attend(number, {source: shard.of(sequences) for source, shard in shards.items()}, scale)
        next(arriving, None)
    outputs = [rows.state.output(q.dtype) for _, rows in groups]
    ring.clock.attended()
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _joint(ring: RingContext, num_starts: int) -> FusedLimits | None:
    """What the kernel computes with while it is still on its way, on some ranks at least; None: nothing."""
    joins = ring.transport.announces and ring.prefetch_hops is None and num_starts == 1
    return ring.kernel.fused_limits if joins else None


@dataclass(frozen=True)
class _Round:
    """Shards that are computed with together: whose, and the launches for sequences of each start.

    joined: one launch does it, which awaits them, and sends the rank's own.
    """

    sources: Sequence[int]
    launches: Sequence[Sequence[Launch]]
    joined: bool = False

    @property
    def wanted(self) -> set[int]:
        """Whose shards blocks are about."""
        return {source for found in self.launches for launch in found for source, _ in launch.parts}


def _rounds(ring: RingContext, starts: Sequence[int], fused_limits: FusedLimits | None) -> list[_Round]:
    """One source a round, but for the first ones if one launch takes them, as `fused_limits` says."""
    sources = Route.of(ring.plan.kv_tokens, ring.rank).sources

    def together(sources: Sequence[int], joined: bool = False) -> _Round:
        found = [launches(ring.plan, ring.rank, sources, start, ring.kernel.fused_limits) for start in starts]
        return _Round(sources, found, joined)

    if fused_limits is not None:
        first = together(sources[: fused_limits.spans], joined=True)
        (found,) = first.launches
        if len(found) == 1 and found[0].parts[0][0] == ring.rank:
            return [first, *(together([source]) for source in sources[fused_limits.spans :])]
    return [together([source]) for source in sources]


@dataclass(frozen=True)
class _Shard:
    """Keys and values [b, Hkv, L, D] each."""

    keys: torch.Tensor
    values: torch.Tensor
    arriving: Arriving | None = None
    sending: Sending | None = None

    @classmethod
    def made_of(
        cls,
        shard: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        arriving: Arriving | None = None,
        sending: Sending | None = None,
    ) -> _Shard:
        """Of keys and values [b, L, Hkv, D] each."""
        keys, values = (x.transpose(1, 2) for x in shard)
        return cls(keys, values, arriving, sending)

    def of(self, sequences: slice) -> _Shard:
        return replace(self, keys=self.keys[sequences], values=self.values[sequences])


def _taken_up(
    arrivals: Mapping[int, Arrival], wanted: Collection[int], ring: RingContext
) -> dict[int, _Shard]:
    """The shards of a round by source; of several, those that are announced may still be to come.

    wanted: sources that blocks are about.
    """
    (first, *further) = arrivals
    if not further and first != ring.rank:
        with ring.clock.waiting(first):
            return {first: _Shard.made_of(arrivals[first]())}
    shards: dict[int, _Shard] = {}
    waited = None
    for source, arrival in arrivals.items():
        if source in wanted and isinstance(arrival, Announced):
            shard, words, taken = arrival.announced()
            waited = words.new_empty(1) if waited is None else waited
            shards[source] = _Shard.made_of(shard, Arriving(words, waited, taken))
        else:
            sending = arrival.sending if isinstance(arrival, LocalShard) else None
            shards[source] = _Shard.made_of(arrival(), sending=sending)
    ring.clock.takes(list(arrivals), waited)
    return shards


class _Rows:
    """The queries [b, Lq, H, D] of sequences that start at one slot, and their result so far.

    rounds: the launches of each.
    """

    def __init__(self, q: torch.Tensor, rounds: Sequence[Sequence[Launch]], kernel: Kernel) -> None:
        batch, length, heads, dim = q.shape
        self._q, self._kernel, self._rounds = q, kernel, rounds
        blocks = [launch.rows for found in self._rounds for launch in found]
        self.state = OnlineSoftmax(batch, heads, length, dim, q.device, blocks=blocks, dtype=q.dtype)

    def attend(self, number: int, shards: Mapping[int, _Shard], scale: float) -> None:
        """Compute with the round's shards."""
        for launch in self._rounds[number]:
            rows, spans = slice(*launch.rows), []
            for source, block in launch.parts:
                shard, columns = shards[source], slice(block.kv_start, block.kv_stop)
                keys, values = (x[:, :, columns] for x in (shard.keys, shard.values))
                from_row = block.q_start - rows.start
                sending = None if spans else shard.sending
                spans.append(KeySpan(keys, values, from_row, shard.arriving, sending))
            queries = self._q[:, rows].transpose(1, 2)
            self.state.attend(
                self._kernel, queries, spans, launch.first.shape is BlockShape.CAUSAL, scale, rows
            )


def reshard(kv: torch.Tensor, ring: RingContext) -> torch.Tensor:
    """Keys/values of this rank's queries -> those of its kv shard; kv is [2, B, L, Hkv, D]."""
    plan, rank = ring.plan, ring.rank
    mine_q, mine_kv = plan.q_shards[rank], plan.kv_shards[rank]
    peers = range(plan.world_size)
    sends = {
        peer: torch.cat([kv[:, :, a : a + n] for a, _, n in mine_q.overlap(plan.kv_shards[peer])], dim=2)
        for peer in peers
        if any(mine_q.overlap(plan.kv_shards[peer]))
    }
    runs = {peer: list(mine_kv.overlap(plan.q_shards[peer])) for peer in peers}
    receives = {
        peer: kv.new_empty((*kv.shape[:2], sum(n for _, _, n in found), *kv.shape[3:]))
        for peer, found in runs.items()
        if found
    }
    if rank in receives:
        receives[rank] = sends.pop(rank)
    with ring.clock.waiting(rank):
        remote = {peer: buffer for peer, buffer in receives.items() if peer != rank}
        ring.transport.exchange(sends, remote, _resharded_bytes(plan, kv.nbytes // mine_q.num_tokens))
    result = kv.new_empty((*kv.shape[:2], mine_kv.num_tokens, *kv.shape[3:]))
    for peer, buffer in receives.items():
        offset = 0
        for start, _, length in runs[peer]:
            result[:, :, start : start + length] = buffer[:, :, offset : offset + length]
            offset += length
    return result


def _resharded_bytes(plan: Plan, token_bytes: int) -> list[list[int]]:
    """What rank s sends rank r in `reshard`, in bytes: [s][r]."""
    return [
        [
            0 if peer == rank else token_bytes * sum(n for _, _, n in queries.overlap(plan.kv_shards[peer]))
            for peer in range(plan.world_size)
        ]
        for rank, queries in enumerate(plan.q_shards)
    ]
