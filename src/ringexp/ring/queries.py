"""The queries of one rank, and their result, in groups of sequences with equal padding.

Batches of unequal prompts are padded on the left. The keys that a sequence attends to are then a suffix of
every shard, so its blocks are full or causal rectangles like any others, and no kernel needs a mask. Most
batches have one group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ringexp.kernels import OnlineSoftmax
from ringexp.kernels.contract import Rows
from ringexp.planning import Block, runs
from ringexp.ring.context import RingContext


@dataclass
class QueryGroup:
    """Sequences of a batch whose padding is of one length.

    Attributes:
        sequences: Their place in the batch.
        q: Their queries, [b, Lq, H, D].
        result: The result of the blocks that were merged so far.
        blocks: For each source the blocks of these queries with its keys and values.
    """

    sequences: slice
    q: torch.Tensor
    result: OnlineSoftmax
    blocks: Mapping[int, Sequence[Block]]


def query_groups(q: torch.Tensor, ring: RingContext, sources: Sequence[int]) -> list[QueryGroup]:
    """Split queries [B, Lq, H, D] into groups; sources: whose shards arrive, in order."""
    groups = []
    for sequences, start in padding_runs(q, ring):
        blocks = {source: ring.plan.blocks(ring.rank, source, start) for source in sources}
        rows = [(block.q_start, block.q_stop) for source in sources for block in blocks[source]]
        queries = q[sequences]
        groups.append(QueryGroup(sequences, queries, empty_result(queries, rows), blocks))
    return groups


def padding_runs(q: torch.Tensor, ring: RingContext) -> list[tuple[slice, int]]:
    """Return neighbouring sequences with equal padding, and the position at which that padding ends."""
    return runs(ring.plan.starts or [0] * q.shape[0])


def empty_result(q: torch.Tensor, rows: Sequence[Rows]) -> OnlineSoftmax:
    """Return the result of queries [b, Lq, H, D] before the first block; rows: of all blocks, in order."""
    batch, length, heads, dim = q.shape
    return OnlineSoftmax(batch, heads, length, dim, q.device, blocks=rows, dtype=q.dtype)


def joined_output(results: Sequence[OnlineSoftmax], dtype: torch.dtype) -> torch.Tensor:
    """Return the output [B, Lq, H, D] of all groups, contiguous."""
    outputs = [result.output(dtype) for result in results]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
