"""The ring attention algorithm: queries stay where they are, keys and values of all ranks come by.

for each shard that arrives:
    for each block of the plan between the rank's queries and this shard:
        attend, and merge the partial result
"""

from __future__ import annotations

from contextlib import closing

import torch

from ringexp.ring.context import RingContext
from ringexp.ring.pending import PendingShard
from ringexp.ring.queries import joined_output, query_groups
from ringexp.ring.transport import RingPass


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ring: RingContext, softmax_scale: float
) -> torch.Tensor:
    """Compute `attention.ring_attention` shard by shard, one kernel call per block."""
    tokens = ring.plan.kv_tokens
    ring_pass = RingPass(tokens, ring.prefetch_hops, ring.plan.needed)
    with closing(ring.transport.circulate(k, v, ring_pass)) as shards:
        groups = query_groups(q, ring, ring.transport.arrival_order(tokens))
        for shard in shards:
            keys, values = receive(shard, ring)
            for group in groups:
                for block in group.blocks[shard.source]:
                    rows, columns = slice(block.q_start, block.q_stop), slice(block.kv_start, block.kv_stop)
                    out, lse = ring.kernel.block(
                        group.q[:, rows].transpose(1, 2),
                        keys[group.sequences, :, columns],
                        values[group.sequences, :, columns],
                        block.shape,
                        softmax_scale,
                    )
                    group.result.merge(out, lse, rows)
    return joined_output([group.result for group in groups], q.dtype)


def receive(shard: PendingShard, ring: RingContext) -> tuple[torch.Tensor, torch.Tensor]:
    """Wait for a shard, on the clock; return its keys and values [B, Hkv, L, D]."""
    if shard.source == ring.rank:
        ring.clock.computes_with([shard.source])
        keys, values = shard.receive()
    else:
        with ring.clock.waiting(shard.source):
            keys, values = shard.receive()
    return keys.transpose(1, 2), values.transpose(1, 2)
