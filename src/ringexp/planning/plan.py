"""A plan: which positions every rank holds, as queries and as keys/values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ringexp.errors import UserError, whole_number
from ringexp.planning.apportion import apportion
from ringexp.planning.blocks import Block, BlockShape, blocks_between
from ringexp.planning.chunks import chunk_counts, chunk_shards, joined
from ringexp.planning.layouts import shards_for
from ringexp.planning.masks import CAUSAL, Mask
from ringexp.planning.request import PlanRequest
from ringexp.planning.spans import Shard


@dataclass(frozen=True)
class Plan:
    """Who holds what: layout x token counts x mask for all ranks. Each rank computes the same plan.

    Attributes:
        seq_len: tokens of the prompt.
        layout: the rule from token counts to positions, by name.
        mask: which keys a query may see.
        q_shards: the positions that each rank holds as queries.
        kv_shards: the positions that each rank holds as keys/values.
        aligned: whether keys/values are computed where they are needed; False for split=kv.
        chunks: the plans of chunked prefill, in order. A chunk's keys/values are its own and those of all
            chunks before.
        starts: per sequence of a batch the first position that is no padding; () if there is no padding.
    """

    seq_len: int
    layout: str
    mask: Mask
    q_shards: tuple[Shard, ...]
    kv_shards: tuple[Shard, ...]
    aligned: bool = True
    chunks: tuple[Plan, ...] = ()
    starts: tuple[int, ...] = ()

    @property
    def world_size(self) -> int:
        return len(self.q_shards)

    @property
    def tokens(self) -> list[int]:
        """Query tokens per rank."""
        return [shard.num_tokens for shard in self.q_shards]

    @property
    def kv_tokens(self) -> list[int]:
        """Key/value tokens per rank."""
        return [shard.num_tokens for shard in self.kv_shards]

    @property
    def shares(self) -> list[float]:
        """The fraction of the tokens that is planned by speed: keys/values for split=kv, else queries."""
        return [count / self.seq_len for count in (self.tokens if self.aligned else self.kv_tokens)]

    @property
    def members(self) -> list[int]:
        """The ranks in the ring: those that hold anything."""
        return ring_members(self.kv_tokens)

    def checked_rank(self, rank: int) -> int:
        """Return the rank. Raises UserError if the plan has no such rank."""
        if type(rank) is int and 0 <= rank < len(self.q_shards):
            return rank
        return whole_number("rank", rank, 0, len(self.q_shards) - 1, f"; the plan is for {self.world_size}")

    def real_tokens(self, rank: int) -> float:
        """Return the query tokens of `rank` that are no padding, on average per sequence of the batch."""
        rank = self.checked_rank(rank)
        return fmean(self.q_shards[rank].since(start)[1].num_tokens for start in self.starts or (0,))

    @property
    def owner_of_last(self) -> int:
        """The rank that holds the last position as a query."""
        return max(range(self.world_size), key=lambda rank: self.q_shards[rank].last)

    def blocks(self, rank: int, source: int, start: int = 0) -> tuple[Block, ...]:
        """Return the attention calls of `rank`'s queries against `source`'s keys/values, in local indices.

        Positions before `start` are padding: nobody attends to them, and they attend to nothing. Shards are
        sorted, so on every rank padding comes first.
        """
        rank, source = self.checked_rank(rank), self.checked_rank(source)
        padded_queries, queries = self.q_shards[rank].since(start)
        padded_keys, keys = self.kv_shards[source].since(start)
        blocks = blocks_between(queries, keys, self.mask)
        return tuple(block.moved(padded_queries, padded_keys) for block in blocks) if start else blocks

    def needed(self, rank: int, source: int) -> range:
        """Return the part of `source`'s keys/values, in local indices, that the queries of `rank` see."""
        blocks = self.blocks(rank, source)
        if not blocks:
            return range(0)
        return range(min(block.kv_start for block in blocks), max(block.kv_stop for block in blocks))

    def pairs(self, rank: int) -> float:
        """Return the attention work of `rank`: its query-key pairs, on average per sequence of the batch."""
        rank = self.checked_rank(rank)
        parts = self.chunks or (self,)
        return sum(fmean(_keys_seen(part, rank, start) for start in self.starts or (0,)) for part in parts)

    def causal_pairs(self, rank: int) -> float:
        """Return how many of these pairs are in causal blocks."""
        parts = self.chunks or (self,)
        return sum(pairs_between(part, rank, source)[1] for part in parts for source in part.members)


def pairs_between(plan: Plan, rank: int, source: int) -> tuple[float, float]:
    """Return the pairs of `rank`'s queries and `source`'s keys, and how many of them are in causal blocks.

    Both are averages per sequence of the batch.
    """
    blocks_by_start = [plan.blocks(rank, source, start) for start in plan.starts or (0,)]
    pairs = fmean(sum(block.pairs for block in blocks) for blocks in blocks_by_start)
    return pairs, fmean(
        sum(block.pairs for block in blocks if block.shape is BlockShape.CAUSAL) for blocks in blocks_by_start
    )


def _keys_seen(plan: Plan, rank: int, start: int) -> int:
    """Sum up how many keys each query of `rank` sees; positions before `start` are padding.

    Every key has its place on some rank, so a causal query sees as many as there are up to its position.
    """
    _, queries = plan.q_shards[rank].since(start)
    num_keys = sum(shard.num_tokens for shard in plan.kv_shards) - start
    return sum(plan.mask.keys_seen(span.start - start, span.stop - start, num_keys) for span in queries.spans)


def ring_members(tokens: Sequence[int]) -> list[int]:
    """Return the ranks that hold tokens, in ring order."""
    return [rank for rank, count in enumerate(tokens) if count]


def make_plan(
    seq_len: int,
    tokens: Sequence[int],
    layout: str = "zigzag",
    *,
    split: str = "tokens",
    mask: Mask = CAUSAL,
    tile: int = 1,
    chunks: int = 1,
    starts: Sequence[int] = (),
) -> Plan:
    """Return the plan that gives rank i `tokens[i]` tokens, as `place_tokens` does for a request."""
    request = PlanRequest(seq_len, tile, layout, mask, split, chunks, tuple(starts))
    return place_tokens(request, tokens)


def place_tokens(request: PlanRequest, tokens: Sequence[int]) -> Plan:
    """Return the plan that gives rank i `tokens[i]` tokens of the requested prompt, in the requested layout.

    Raises:
        UserError: if the counts do not add up, the layout is unknown, or a rank has too few tokens.
    """
    seq_len, layout, mask, starts = request.seq_len, request.layout, request.mask, request.starts
    if sum(tokens) != seq_len:
        raise UserError(f"token counts {list(tokens)} add up to {sum(tokens)}, not to seq_len={seq_len}")
    if request.chunks > 1:
        return _chunked_plan(request, tokens)
    q_shards = kv_shards = tuple(shards_for(layout, tokens))
    if request.split == "kv":
        if not all(tokens):
            raise UserError(f"split=kv needs keys/values on every rank, got token counts {list(tokens)}")
        even = apportion([1.0] * len(tokens), seq_len, request.tile)
        q_shards = tuple(shards_for(layout, even))
    return Plan(seq_len, layout, mask, q_shards, kv_shards, aligned=q_shards == kv_shards, starts=starts)


def _chunked_plan(request: PlanRequest, tokens: Sequence[int]) -> Plan:
    layout, mask, starts = request.layout, request.mask, request.starts
    assert mask.is_causal, "without a mask every query needs all keys at once"
    kv_shards = tuple(Shard(()) for _ in tokens)
    plans = []
    for q_shards in chunk_shards(layout, chunk_counts(tokens, request.chunks, request.tile)):
        kv_shards = tuple(joined(*pair) for pair in zip(kv_shards, q_shards, strict=True))
        end = sum(shard.num_tokens for shard in kv_shards)
        plans.append(Plan(end, layout, mask, q_shards=q_shards, kv_shards=kv_shards, starts=starts))
    chunks = tuple(plans)
    return Plan(request.seq_len, layout, mask, kv_shards, kv_shards, chunks=chunks, starts=starts)
