"""Blocks: the rectangles of attention between a query shard and a key/value shard.

Every pair of spans splits into at most three rectangles that a kernel runs without any index mask: `full`
(every query sees every key) or `causal` (aligned square). Neighbouring rectangles are then fused, so that
with matching shards the diagonal is one causal call and every remote shard is one full call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from ringexp.planning.masks import Mask
from ringexp.planning.spans import Shard, Span


class BlockShape(Enum):
    """Which pairs of a block's queries and keys attend.

    FULL: all of them. CAUSAL: the block is a square, and its query i sees its keys 0 to i.
    """

    FULL = "full"
    CAUSAL = "causal"


@dataclass(frozen=True)
class Block:
    """One attention call in local indices: queries [q_start, q_stop) against keys [kv_start, kv_stop)."""

    q_start: int
    q_stop: int
    kv_start: int
    kv_stop: int
    shape: BlockShape

    def moved(self, queries: int, keys: int) -> Block:
        """Return the same block where this many queries and keys lie before it."""
        rows = (self.q_start + queries, self.q_stop + queries)
        return Block(*rows, self.kv_start + keys, self.kv_stop + keys, self.shape)

    @property
    def q_len(self) -> int:
        return self.q_stop - self.q_start

    @property
    def kv_len(self) -> int:
        return self.kv_stop - self.kv_start

    @property
    def pairs(self) -> int:
        """Query-key pairs computed: the attention work of this block."""
        if self.shape is BlockShape.CAUSAL:
            return self.q_len * (self.q_len + 1) // 2
        return self.q_len * self.kv_len


@lru_cache(maxsize=4096)
def blocks_between(q_shard: Shard, kv_shard: Shard, mask: Mask) -> tuple[Block, ...]:
    """Return the blocks that cover exactly the pairs (query, key) that the mask allows, each pair once."""
    if not (q_shard.spans and kv_shard.spans):
        return ()
    if not mask.is_causal:
        return (Block(0, q_shard.num_tokens, 0, kv_shard.num_tokens, BlockShape.FULL),)
    before, later = kv_shard.since(q_shard.spans[0].start)  # what is before all queries is one block
    blocks = [Block(0, q_shard.num_tokens, 0, before, BlockShape.FULL)] if before else []
    blocks += [
        block
        for q_offset, q in q_shard.placed()
        for kv_offset, kv in later.placed()
        for block in _between_spans(q, kv, q_offset - q.start, before + kv_offset - kv.start)
    ]
    return tuple(_fuse(blocks))


def _between_spans(q: Span, kv: Span, to_q: int, to_kv: int) -> Iterator[Block]:
    """Yield the rectangles between two spans; `to_q` and `to_kv` turn global positions into local indices."""
    after = max(q.start, kv.stop)  # queries from here on see all of kv
    if after < q.stop:
        yield Block(after + to_q, q.stop + to_q, kv.start + to_kv, kv.stop + to_kv, BlockShape.FULL)
    low, high = max(q.start, kv.start), min(q.stop, kv.stop)
    if low < high:  # overlapping positions: what lies before them is full, they themselves are the diagonal
        if kv.start < low:
            yield Block(low + to_q, high + to_q, kv.start + to_kv, low + to_kv, BlockShape.FULL)
        yield Block(low + to_q, high + to_q, low + to_kv, high + to_kv, BlockShape.CAUSAL)


def _fuse(blocks: list[Block]) -> list[Block]:
    """Join neighbours until nothing changes: fewer, larger kernel calls over the same pairs."""
    blocks = sorted(blocks, key=lambda b: (b.q_start, b.kv_start, b.shape is BlockShape.CAUSAL))
    while True:
        joined = _join_any(blocks)
        if joined is None:
            return blocks
        blocks = sorted(joined, key=lambda b: (b.q_start, b.kv_start, b.shape is BlockShape.CAUSAL))


def _join_any(blocks: list[Block]) -> list[Block] | None:
    for i, a in enumerate(blocks):
        for j, b in enumerate(blocks):
            if i == j or b.shape is not BlockShape.FULL:
                continue
            rest = [block for k, block in enumerate(blocks) if k not in (i, j)]
            if a.shape is BlockShape.FULL:
                same_rows = (a.q_start, a.q_stop) == (b.q_start, b.q_stop) and a.kv_stop == b.kv_start
                if same_rows:
                    return [*rest, Block(a.q_start, a.q_stop, a.kv_start, b.kv_stop, BlockShape.FULL)]
                same_keys = (a.kv_start, a.kv_stop) == (b.kv_start, b.kv_stop) and a.q_stop == b.q_start
                if same_keys:
                    return [*rest, Block(a.q_start, b.q_stop, a.kv_start, a.kv_stop, BlockShape.FULL)]
            else:  # causal square, full block below it, and the next causal square make one larger square
                below = (b.kv_start, b.kv_stop, b.q_start) == (a.kv_start, a.kv_stop, a.q_stop)
                corner = Block(b.q_start, b.q_stop, a.kv_stop, a.kv_stop + b.q_len, BlockShape.CAUSAL)
                if below and corner in rest:
                    rest.remove(corner)
                    return [*rest, Block(a.q_start, b.q_stop, a.kv_start, corner.kv_stop, BlockShape.CAUSAL)]
    return None
