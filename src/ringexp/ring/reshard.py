"""Moving keys and values to the ranks that hold them, for plans that split keys and values alone."""

from __future__ import annotations

import torch

from ringexp.planning import Plan
from ringexp.ring.context import RingContext


def reshard(kv: torch.Tensor, ring: RingContext) -> torch.Tensor:
    """Exchange keys and values so that each rank has those of its key/value shard.

    Args:
        kv: Those of this rank's query positions, [2, B, Lq, Hkv, D].
        ring: The ring of this rank.

    Returns:
        Those of this rank's key/value positions, [2, B, Lkv, Hkv, D].
    """
    plan, rank = ring.plan, ring.rank
    queries, keys = plan.q_shards[rank], plan.kv_shards[rank]
    peers = range(plan.world_size)
    sends = {
        peer: torch.cat([kv[:, :, a : a + n] for a, _, n in queries.overlap(plan.kv_shards[peer])], dim=2)
        for peer in peers
        if any(queries.overlap(plan.kv_shards[peer]))
    }
    runs = {peer: list(keys.overlap(plan.q_shards[peer])) for peer in peers}
    receives = {
        peer: kv.new_empty((*kv.shape[:2], sum(n for _, _, n in peer_runs), *kv.shape[3:]))
        for peer, peer_runs in runs.items()
        if peer_runs
    }
    if rank in receives:
        receives[rank] = sends.pop(rank)
    with ring.clock.waiting(rank):
        remote = {peer: buffer for peer, buffer in receives.items() if peer != rank}
        ring.transport.exchange(sends, remote, _sent_bytes(plan, kv.nbytes // queries.num_tokens))
    result = kv.new_empty((*kv.shape[:2], keys.num_tokens, *kv.shape[3:]))
    for peer, buffer in receives.items():
        offset = 0
        for start, _, length in runs[peer]:
            result[:, :, start : start + length] = buffer[:, :, offset : offset + length]
            offset += length
    return result


def _sent_bytes(plan: Plan, token_bytes: int) -> list[list[int]]:
    """Return how many bytes rank s sends to rank r in `reshard`, as a table [s][r]."""
    return [
        [
            0 if peer == rank else token_bytes * sum(n for _, _, n in queries.overlap(plan.kv_shards[peer]))
            for peer in range(plan.world_size)
        ]
        for rank, queries in enumerate(plan.q_shards)
    ]
