"""Ring attention over one plan: own queries stay, keys/values of all ranks come by.

Batches of unequal prompts are padded on the left. What a sequence attends to is then a suffix of every shard,
so its blocks are full or causal rectangles like any others, and no kernel needs a mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch

from ringexp.kernels import Kernel, KeySpan, OnlineSoftmax
from ringexp.planning import Plan, runs
from ringexp.ring.clock import Clock
from ringexp.ring.launches import launches
from ringexp.ring.transport import Route, Transport

T = TypeVar("T")


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
    arriving = ring.transport.circulate(k, v, ring.plan.kv_tokens, ring.prefetch_hops)
    rounds = _rounds(ring)
    groups = [(sequences, _Rows(q[sequences], start, ring, rounds)) for sequences, start in starts]
    for number, arrivals in enumerate(_batches(arriving, len(rounds[0]))):
        shards = {}
        for source, arrival in arrivals:
            with ring.clock.waiting(source):
                keys, values = (x.transpose(1, 2) for x in arrival())  # [B, Hkv, L, D] each
            shards[source] = keys, values
        for sequences, rows in groups:
            rows.attend(
                number, {source: (k[sequences], v[sequences]) for source, (k, v) in shards.items()}, scale
            )
    outputs = [rows.state.output(q.dtype) for _, rows in groups]
    ring.clock.attended()
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _rounds(ring: RingContext) -> list[list[int]]:
    """Whose shards are computed with together: all, where that delays nothing, else one by one."""
    sources = Route.of(ring.plan.kv_tokens, ring.rank).sources
    together = ring.transport.together and ring.kernel.joint and ring.prefetch_hops is None
    return [sources] if together else [[source] for source in sources]


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


class _Rows:
    """The queries [b, Lq, H, D] of sequences that start at one slot, and their result so far."""

    def __init__(self, q: torch.Tensor, start: int, ring: RingContext, rounds: list[list[int]]) -> None:
        batch, length, heads, dim = q.shape
        self._q, self._kernel = q, ring.kernel
        self._rounds = [
            launches(ring.plan, ring.rank, sources, start, ring.kernel.joint) for sources in rounds
        ]
        blocks = [launch.rows for found in self._rounds for launch in found]
        self.state = OnlineSoftmax(batch, heads, length, dim, q.device, blocks=blocks, dtype=q.dtype)

    def attend(
        self, number: int, shards: Mapping[int, tuple[torch.Tensor, torch.Tensor]], scale: float
    ) -> None:
        """Compute with the keys and values, [b, Hkv, L, D] each, of the round's shards."""
        for launch in self._rounds[number]:
            rows, spans = slice(*launch.rows), []
            for source, block in launch.parts:
                keys, values = (x[:, :, block.kv_start : block.kv_stop] for x in shards[source])
                spans.append(KeySpan(keys, values, block.q_start - rows.start))
            queries = self._q[:, rows].transpose(1, 2)
            self.state.attend(self._kernel, queries, spans, launch.first.causal, scale, rows)


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
