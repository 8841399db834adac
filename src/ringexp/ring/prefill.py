"""Ring attention over one plan: own queries stay, keys/values of all ranks come by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ringexp.kernels import Kernel, OnlineSoftmax
from ringexp.planning import Plan
from ringexp.ring.clock import Clock
from ringexp.ring.transport import Transport


@dataclass(frozen=True)
class RingContext:
    """What one rank needs to take part in the ring."""

    plan: Plan
    rank: int
    transport: Transport
    kernel: Kernel
    clock: Clock
    prefetch_hops: int | None = None


def ring_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ring: RingContext, softmax_scale: float | None = None
) -> torch.Tensor:
    """Exact attention of this rank's queries over the keys/values of all ranks.

    q: [B, Lq, H, D], k and v: [B, Lq, Hkv, D] for this rank's positions, heads not expanded. Returns
    [B, Lq, H, D], contiguous, in q's dtype. `softmax_scale` multiplies the scores; None means 1/sqrt(D).
    Partial results are merged by online softmax in float32 (Milakov and Gimelshein 2018; Liu et al. 2023).
    """
    plan, rank = ring.plan, ring.rank
    scale = 1.0 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    if not plan.aligned:
        k, v = reshard(torch.stack((k, v)), ring)
    num_blocks = sum(len(plan.blocks(rank, source)) for source in plan.members)
    batch, length, heads, dim = q.shape
    state = OnlineSoftmax(batch, heads, length, dim, q.device, num_blocks=num_blocks, dtype=q.dtype)
    for source, arrival in ring.transport.circulate(k, v, plan.kv_tokens, ring.prefetch_hops):
        with ring.clock.waiting(source):
            keys, values = arrival().transpose(2, 3)  # [B, Hkv, L, D] each
        for block in plan.blocks(rank, source):
            rows, columns = slice(block.q_start, block.q_stop), slice(block.kv_start, block.kv_stop)
            queries = q[:, rows].transpose(1, 2)
            state.attend(
                ring.kernel, queries, keys[:, :, columns], values[:, :, columns], block.causal, scale, rows
            )
    out = state.output(q.dtype)
    ring.clock.attended()
    return out


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
