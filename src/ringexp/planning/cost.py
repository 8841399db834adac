"""What work costs each rank, and the split that makes the slowest rank as early as it can be.

A rank's time for a tokens of its own that attend in p query-key pairs, d of them in causal blocks, is

    fixed_ms + token_ms * a + pair_ms * p + diagonal_ms * d

Under weighted zigzag p is a * seq_len / 2 and d is a^2 / 2, so the time depends on the rank's own tokens
only; under contiguous p depends on where its span begins. Either way, what a rank can do by a time T only
grows with T: the least T by which all ranks together hold all tokens is found by bisection (water-filling),
in whole tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ringexp.errors import UserError


@dataclass(frozen=True)
class RankCost:
    """Milliseconds that work takes on one rank; `max_tokens` is what its memory holds, None: any number.

    fixed_ms is paid once by a rank with tokens; token_ms, linear layers, for each; pair_ms, attention, for
    each query-key pair it computes, and diagonal_ms on top for one in a causal block, which kernels do less
    well.
    """

    fixed_ms: float
    token_ms: float
    pair_ms: float
    diagonal_ms: float = 0.0
    max_tokens: int | None = None

    def time_ms(self, tokens: int, pairs: float, causal_pairs: float) -> float:
        """A rank without tokens takes no time."""
        return self.linear_ms(tokens) + self.attention_ms(pairs, causal_pairs) if tokens else 0.0

    def times(self, factor: float) -> RankCost:
        """Of a rank that takes `factor` times as long for everything."""
        return replace(
            self,
            fixed_ms=self.fixed_ms * factor,
            token_ms=self.token_ms * factor,
            pair_ms=self.pair_ms * factor,
            diagonal_ms=self.diagonal_ms * factor,
        )

    def linear_ms(self, tokens: int) -> float:
        return self.fixed_ms + self.token_ms * tokens

    def attention_ms(self, pairs: float, causal_pairs: float) -> float:
        return self.pair_ms * pairs + self.diagonal_ms * causal_pairs


@dataclass(frozen=True)
class HopCost:
    """Milliseconds that passing a shard on takes: once, and for each of its tokens."""

    latency_ms: float
    token_ms: float

    def time_ms(self, tokens: int) -> float:
        return self.latency_ms + self.token_ms * tokens


def balance(costs: Sequence[RankCost], seq_len: int, tile: int, layout: str, causal: bool) -> list[int]:
    """Token counts, in whole tiles but for the last, with which the slowest rank is done first.

    A rank that cannot do a single tile in that time gets none. The plan is never later than the best of the
    ranks alone, by these costs.

    Raises UserError if the ranks' memories together cannot hold the prompt.
    """
    room = [seq_len if cost.max_tokens is None else cost.max_tokens for cost in costs]
    if sum(room) < seq_len:
        raise UserError(
            f"seq_len={seq_len} does not fit the ranks' memory, which holds {' + '.join(map(str, room))} = "
            f"{sum(room)} tokens at most (memory_limit_gib)"
        )

    def filled(deadline_ms: float) -> list[int]:
        return _fill(costs, room, deadline_ms, seq_len, tile, layout, causal)

    low, high = 0.0, max(cost.time_ms(seq_len, float(seq_len) ** 2, float(seq_len) ** 2) for cost in costs)
    while sum(filled(high)) < seq_len:  # by rounding to tiles under tight memory
        if high > 1e300:
            raise UserError(f"seq_len={seq_len} does not fit the ranks' memory in tiles of {tile}: {room}")
        high = max(2 * high, 1.0)
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if sum(filled(middle)) >= seq_len else (middle, high)
    return filled(high)


def _fill(
    costs: Sequence[RankCost],
    room: Sequence[int],
    deadline_ms: float,
    seq_len: int,
    tile: int,
    layout: str,
    causal: bool,
) -> list[int]:
    """What each rank can do by the deadline, in rank order, until all tokens are given out."""
    counts: list[int] = []
    start = 0
    for cost, most in zip(costs, room, strict=True):
        left = seq_len - start
        can = min(_tokens_by(cost, deadline_ms - cost.fixed_ms, seq_len, start, layout, causal), most, left)
        count = left if can >= left else int(can // tile) * tile
        counts.append(count)
        start += count
    return counts


def _tokens_by(cost: RankCost, left_ms: float, seq_len: int, start: int, layout: str, causal: bool) -> float:
    """The most tokens a whose work takes no more than left_ms: square * a^2 + linear * a = left_ms.

    start: how many tokens the ranks before have, which all its queries see under contiguous.
    """
    if left_ms <= 0:
        return 0.0
    if not causal:
        square, linear = 0.0, cost.token_ms + cost.pair_ms * seq_len
    elif layout == "contiguous":
        square, linear = (cost.pair_ms + cost.diagonal_ms) / 2, cost.token_ms + cost.pair_ms * start
    else:
        square, linear = cost.diagonal_ms / 2, cost.token_ms + cost.pair_ms * seq_len / 2
    if not square and not linear:
        return math.inf
    return 2 * left_ms / (linear + math.sqrt(linear**2 + 4 * square * left_ms))
