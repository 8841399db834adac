"""The time that each member of a ring computes with each shard, in closed form where a plan has one.

Where queries and keys/values lie alike and nothing is padding, a member's queries see all of its own shard's
causal square; of a member before it the first span and no more; and only its second span sees a member after
it, but then all of that. So a ring of a thousand ranks needs no million lists of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from ringexp.planning.cost import RankCost
from ringexp.planning.plan import Plan, pairs_between


def compute_ms(plan: Plan, costs: Sequence[RankCost], members: Sequence[int]) -> list[float]:
    """Return how long each member computes in all, in ms, linear layers included."""
    linear = linear_ms(plan, costs, members)
    if not _closed(plan):
        return [
            linear_part + sum(row)
            for linear_part, *row in zip(linear, *block_rows(plan, costs, members), strict=True)
        ]
    blocks = _ClosedForm(plan, costs, members).totals()
    return [linear_part + total for linear_part, total in zip(linear, blocks, strict=True)]


def linear_ms(plan: Plan, costs: Sequence[RankCost], members: Sequence[int]) -> list[float]:
    """Return the time in ms of each member's linear layers and of what it pays once."""
    return [costs[rank].linear_ms(plan.q_shards[rank].num_tokens) for rank in members]


def block_rows(plan: Plan, costs: Sequence[RankCost], members: Sequence[int]) -> Iterator[list[float]]:
    """Yield per hop the time in ms of each member's blocks. Hop 0 is with its own shard."""
    if _closed(plan):
        yield from _ClosedForm(plan, costs, members).rows()
        return
    for hop in range(len(members)):
        yield [block_ms(plan, costs[rank], rank, members[place - hop]) for place, rank in enumerate(members)]


def needed_rows(plan: Plan, members: Sequence[int]) -> Iterator[list[int]]:
    """Yield per hop how many keys/values of the shard each member computes with. Hop 0 is its own shard."""
    if not _closed(plan):
        for hop in range(len(members)):
            yield [len(plan.needed(rank, members[place - hop])) for place, rank in enumerate(members)]
        return
    counts, heads = _counts_and_heads(plan, members)
    sees_later = [count > head or not plan.mask.is_causal for count, head in zip(counts, heads, strict=True)]
    yield counts
    for hop in range(1, len(members)):
        later = [n if sees else 0 for n, sees in zip(counts[-hop:], sees_later, strict=False)]
        yield later + heads[:-hop]


def block_ms(plan: Plan, cost: RankCost, rank: int, source: int) -> float:
    """Return the time in ms that `rank` computes with the shard of `source`."""
    pairs, causal_pairs = pairs_between(plan, rank, source)
    hop_ms = cost.hop_ms + cost.hop_token_ms * plan.q_shards[rank].num_tokens
    return cost.attention_ms(pairs, causal_pairs) + (hop_ms if pairs and rank != source else 0.0)


def _closed(plan: Plan) -> bool:
    alike = plan.q_shards == plan.kv_shards and not plan.starts
    return alike and all(len(shard.spans) <= 2 for shard in plan.kv_shards)


def _counts_and_heads(plan: Plan, members: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return per member its tokens, and how many of them the members after it see."""
    shards = [plan.kv_shards[rank] for rank in members]
    counts = [shard.num_tokens for shard in shards]
    return counts, [len(shard.spans[0]) for shard in shards] if plan.mask.is_causal else counts


class _ClosedForm:
    """The costs of a plan in closed form. All lists have one entry per member.

    Attributes:
        counts: its tokens.
        heads: the tokens of its first span.
        own_ms: the time with its own shard.
        key_ms, hop_ms: the time per key and per hop of members before it.
        later_key_ms, later_hop_ms: the same for members after it.
    """

    def __init__(self, plan: Plan, costs: Sequence[RankCost], members: Sequence[int]) -> None:
        of_members = [costs[rank] for rank in members]
        self.counts, self.heads = _counts_and_heads(plan, members)
        later = [n - head for n, head in zip(self.counts, self.heads, strict=True)]
        later = later if plan.mask.is_causal else self.counts
        pairs = [n * (n + 1) // 2 if plan.mask.is_causal else n * n for n in self.counts]
        self.own_ms = [
            cost.attention_ms(p, p if plan.mask.is_causal else 0)
            for cost, p in zip(of_members, pairs, strict=True)
        ]
        self.key_ms = [cost.pair_ms * n for cost, n in zip(of_members, self.counts, strict=True)]
        self.hop_ms = [
            cost.hop_ms + cost.hop_token_ms * n for cost, n in zip(of_members, self.counts, strict=True)
        ]
        self.later_key_ms = [cost.pair_ms * n for cost, n in zip(of_members, later, strict=True)]
        self.later_hop_ms = [hop_ms if n else 0.0 for hop_ms, n in zip(self.hop_ms, later, strict=True)]

    def totals(self) -> Iterator[float]:
        """Yield per member the sum over all rows."""
        earlier, later, last = 0, sum(self.counts), len(self.counts) - 1  # keys seen of members before, after
        for place, count in enumerate(self.counts):
            later -= count
            before = self.key_ms[place] * earlier + self.hop_ms[place] * place
            after = self.later_key_ms[place] * later + self.later_hop_ms[place] * (last - place)
            yield self.own_ms[place] + before + after
            earlier += self.heads[place]

    def rows(self) -> Iterator[list[float]]:
        yield self.own_ms
        for hop in range(1, len(self.counts)):  # the first `hop` members get shards of members after them
            later = zip(self.later_key_ms, self.counts[-hop:], self.later_hop_ms, strict=False)
            earlier = zip(self.key_ms[hop:], self.heads[:-hop], self.hop_ms[hop:], strict=True)
            yield [key * keys + more for key, keys, more in chain(later, earlier)]
