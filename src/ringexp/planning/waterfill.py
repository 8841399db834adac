"""Water-filling: the token counts with which the slowest rank is done first.

What a rank can do by a time T only grows with T, so the least T by which all ranks together hold all tokens
is found by bisection, in whole tiles. For one T the ranks are filled in rank order, each as far as it can go.
Where a rank may take one of several counts, because what fills no tile is still to be given out or because
odd counts cost less, the furthest end of each kind is followed.

The work of a rank is that of `make_plan`'s shards, pair by pair. Under weighted zigzag a tokens, after ranks
with `start` tokens of which `odd` have odd counts, see in all

    even a:  a * (seq_len + 1 + odd) / 2                          keys
    odd a:   a * (seq_len + 2 + odd) / 2 - (seq_len - start) / 2  keys, as one token more is in the head

No split in whole tiles is faster; but with many ranks and odd counts not all kinds of ends are followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ringexp.choices import LAYOUTS
from ringexp.errors import UserError
from ringexp.planning.cost import RankCost
from ringexp.planning.masks import Mask

PRECISION = 1e-12
"""The relative precision of the least time."""

FRUITLESS = 3
"""After this many trial times in a row were too short, check whether any shorter time can work."""

FOLLOWED = 64
"""The number of ends followed for all ranks together, at least one per rank: planning has to be quick."""


def balance(costs: Sequence[RankCost], seq_len: int, tile: int, layout: str, mask: Mask) -> list[int]:
    """Divide seq_len tokens into whole tiles so that the slowest rank is done as early as possible.

    Tokens that fill no tile go to one rank in addition. A rank that cannot do a single tile in that time gets
    no tokens. By these costs the plan is never slower than the best rank alone.

    Raises UserError if the ranks' memories together cannot hold the prompt.
    """
    limits = [seq_len if cost.max_tokens is None else cost.max_tokens for cost in costs]
    if sum(limits) < seq_len:
        raise UserError(
            f"seq_len={seq_len} does not fit the ranks' memory, which holds {' + '.join(map(str, limits))} = "
            f"{sum(limits)} tokens at most (memory_limit_gib)"
        )
    filling = _Filling(costs, seq_len, tile, layout, mask)
    low, high = 0.0, max(cost.time_ms(seq_len, float(seq_len) ** 2, float(seq_len) ** 2) for cost in costs)
    while (counts := filling.counts(high)) is None:  # by rounding to tiles under tight memory
        if not high < 1e300:
            raise UserError(f"seq_len={seq_len} does not fit the ranks' memory in tiles of {tile}: {limits}")
        high = max(2 * high, 1.0)
    fruitless = 0
    while high - low > PRECISION * high:
        middle = high * (1 - PRECISION) if fruitless == FRUITLESS else (low + high) / 2
        if (earlier := filling.counts(middle)) is None:
            low, fruitless = middle, fruitless + 1
        else:
            counts, high, fruitless = earlier, min(middle, filling.makespan_ms(earlier)), 0
    return counts


class _Rank(NamedTuple):
    """The coefficients of one rank's time in ms for `a` tokens.

    The time is fixed + square * a^2 + (linear + slope * start + half * odd) * a.

    half: the time of half a pair where odd counts matter. most: the most tokens that the rank may have.
    """

    fixed: float
    square: float
    linear: float
    slope: float
    half: float
    most: int


class _End(NamedTuple):
    """The state after the first ranks have been filled.

    tokens: tokens of these ranks together. odd: how many of their counts are odd. rest_given: whether one of
    them got the rest. latest: tokens of the last of these ranks. before: the state that this rank began from.
    """

    tokens: int
    odd: int
    rest_given: bool
    latest: int
    before: _End | None


class _Filling:
    """The filling of ranks up to a deadline. rest: the tokens that fill no tile; one rank also gets these."""

    def __init__(self, costs: Sequence[RankCost], seq_len: int, tile: int, layout: str, mask: Mask) -> None:
        self._seq_len, self._tile, self._rest = seq_len, tile, seq_len % tile
        zigzag = mask.is_causal and LAYOUTS[layout].mirrored
        kinds = {cost: _rank(cost, seq_len, mask, zigzag) for cost in set(costs)}
        self._ranks = [kinds[cost] for cost in costs]
        self._most_ends = max(FOLLOWED // len(costs), 1)
        # The kinds of counts that a rank may have, of whole tiles, and with the rest: 0 even, 1 odd, -1 any.
        both = (0, 1) if tile % 2 else ()
        self._kinds = (both or (0,), both or (self._rest % 2,)) if zigzag else ((-1,), (-1,))
        self._whole_tiles = not self._rest and len(self._kinds[0]) == 1

    def makespan_ms(self, counts: Sequence[int]) -> float:
        """Return the time in ms at which the slowest rank is done."""
        start = odd = 0
        latest = 0.0
        for rank, count in zip(self._ranks, counts, strict=True):
            if count:
                linear, less = rank.linear + rank.slope * start + rank.half * odd, 0.0
                if count % 2:
                    linear, less, odd = linear + rank.half, rank.half * (self._seq_len - start), odd + 1
                latest = max(latest, rank.fixed + (rank.square * count + linear) * count - less)
            start += count
        return latest

    def counts(self, deadline_ms: float) -> list[int] | None:
        """Return how many tokens each rank gets done by the deadline; None if they cannot do all tokens."""
        return self._by_tiles(deadline_ms) if self._whole_tiles else self._by_ends(deadline_ms)

    def _by_tiles(self, deadline_ms: float) -> list[int] | None:
        """Count as `_by_ends` does, but faster, where ranks have one kind of counts and there is no rest."""
        start, tile, counts = 0, self._tile, []
        for fixed, square, linear, slope, _, most in self._ranks:
            count = 0
            if deadline_ms > fixed:
                can = _tokens_by(deadline_ms - fixed, square, linear + slope * start)
                count = int(min(can, most, self._seq_len - start) // tile) * tile
            counts.append(count)
            start += count
        return counts if start == self._seq_len else None

    def _by_ends(self, deadline_ms: float) -> list[int] | None:
        ends = [_End(0, 0, not self._rest, 0, None)]
        for rank in self._ranks:
            reached: dict[tuple[int, bool], _End] = {}
            for end in ends:
                self._extend(end, rank, deadline_ms - rank.fixed, reached)
            ends = self._best(reached.values())
        best = ends[0]
        if not best.rest_given or best.tokens < self._seq_len:
            return None
        counts = []
        while best.before is not None:
            counts.append(best.latest)
            best = best.before
        return counts[::-1]

    def _best(self, ends: Iterable[_End]) -> list[_End]:
        """Return the furthest ends, at most `_most_ends` of each kind, first those with the rest given out.

        Of ends with equally many tokens, the one with fewer odd counts comes first.
        """
        ordered = sorted(ends, key=lambda end: (end.rest_given, end.tokens, -end.odd), reverse=True)
        if len(ordered) <= self._most_ends:
            return ordered
        given = [end for end in ordered if end.rest_given]
        return given[: self._most_ends] + ordered[len(given) :][: self._most_ends]

    def _extend(self, end: _End, rank: _Rank, left_ms: float, reached: dict[tuple[int, bool], _End]) -> None:
        """Add where the rank gets from `end` in the time left, without tokens and with as many as it can."""
        _add(reached, end, 0, 0, end.rest_given)
        most = min(rank.most, self._seq_len - end.tokens)
        if left_ms <= 0 or most <= 0:
            return
        largest = 0
        for kind in self._kinds[0]:
            count = self._largest(end, rank, left_ms, most, 0, kind)
            largest = max(largest, count)
            if count > 0:
                _add(reached, end, count, kind == 1, end.rest_given)
        if end.rest_given:
            return
        for kind in self._kinds[1]:
            best_end = reached.get((end.odd + (kind == 1), True))
            if best_end is None or best_end.tokens < end.tokens + largest + self._rest:  # it leads no further
                count = self._largest(end, rank, left_ms, most, self._rest, kind)
                if count > 0:
                    _add(reached, end, count, kind == 1, True)

    def _largest(self, end: _End, rank: _Rank, left_ms: float, most: int, rest: int, kind: int) -> int:
        """Return the largest count of this kind, made of whole tiles and `rest`. Below 1 there is none."""
        linear = rank.linear + rank.slope * end.tokens + rank.half * end.odd
        if kind == 1:
            linear, left_ms = linear + rank.half, left_ms + rank.half * (self._seq_len - end.tokens)
        can = min(_tokens_by(left_ms, rank.square, linear), most)
        count = int((can - rest) // self._tile) * self._tile + rest
        return count - self._tile if kind >= 0 and count % 2 != kind else count


def _add(reached: dict[tuple[int, bool], _End], end: _End, count: int, odd: int, rest_given: bool) -> None:
    """Let the end after `count` more tokens be reached, unless one of its kind is as far."""
    key = end.odd + odd, rest_given
    best_end = reached.get(key)
    if best_end is None or best_end.tokens < end.tokens + count:
        reached[key] = _End(end.tokens + count, end.odd + odd, rest_given, count, end)


def _rank(cost: RankCost, seq_len: int, mask: Mask, zigzag: bool) -> _Rank:
    most = seq_len if cost.max_tokens is None else cost.max_tokens
    if not mask.is_causal:
        return _Rank(cost.fixed_ms, 0.0, cost.token_ms + cost.pair_ms * seq_len, 0.0, 0.0, most)
    square = cost.diagonal_ms / 2
    if not zigzag:
        square += cost.pair_ms / 2
        return _Rank(cost.fixed_ms, square, cost.token_ms + square, cost.pair_ms, 0.0, most)
    half = cost.pair_ms / 2
    return _Rank(cost.fixed_ms, square, cost.token_ms + half * (seq_len + 1) + square, 0.0, half, most)


def _tokens_by(left_ms: float, square: float, linear: float) -> float:
    """Return the largest number of tokens a with square * a^2 + linear * a <= left_ms."""
    divisor = linear + math.sqrt(linear * linear + 4 * square * left_ms)
    return 2 * left_ms / divisor if divisor else math.inf
