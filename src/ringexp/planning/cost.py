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
    well. hop_ms is paid for every shard of the others that it computes with (launches), hop_token_ms for each
    own token then (merging); in costs from calibration with one such shard, the other parts have them.
    alone_ms is what the whole prompt of the plan takes the rank alone, measured; None: as these
    parts say.
    """

    fixed_ms: float
    token_ms: float
    pair_ms: float
    diagonal_ms: float = 0.0
    max_tokens: int | None = None
    hop_ms: float = 0.0
    hop_token_ms: float = 0.0
    alone_ms: float | None = None

    def time_ms(self, tokens: int, pairs: float, causal_pairs: float) -> float:
        """A rank without tokens takes no time."""
        return self.linear_ms(tokens) + self.attention_ms(pairs, causal_pairs) if tokens else 0.0

    def with_hops(self, hops: int) -> RankCost:
        """The same with the cost of so many hops in fixed_ms and token_ms."""
        fixed_ms, token_ms = self.fixed_ms + hops * self.hop_ms, self.token_ms + hops * self.hop_token_ms
        return replace(self, fixed_ms=fixed_ms, token_ms=token_ms, hop_ms=0.0, hop_token_ms=0.0)

    def capped(self, most: int | None) -> RankCost:
        """The same with no more than `most` tokens, None: any number."""
        caps = [cap for cap in (self.max_tokens, most) if cap is not None]
        return replace(self, max_tokens=min(caps, default=None))

    def slower(self, factor: float) -> RankCost:
        """The same rank, all taking so many times as long."""
        times = ("fixed_ms", "token_ms", "pair_ms", "diagonal_ms", "hop_ms", "hop_token_ms")
        alone_ms = None if self.alone_ms is None else factor * self.alone_ms
        return replace(self, alone_ms=alone_ms, **{name: factor * getattr(self, name) for name in times})

    def linear_ms(self, tokens: int) -> float:
        return self.fixed_ms + self.token_ms * tokens

    def attention_ms(self, pairs: float, causal_pairs: float) -> float:
        return self.pair_ms * pairs + self.diagonal_ms * causal_pairs


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

    numbers = {cost: number for number, cost in enumerate(dict.fromkeys(costs))}
    kinds = [numbers[cost] for cost in costs]
    anywhere = layout != "contiguous" or not causal  # then equal ranks can do equally much: found once a kind

    def filled(deadline_ms: float) -> list[int]:
        """What each rank can do by the deadline, in rank order, until all tokens are given out."""

        def can_do(cost: RankCost, start: int) -> float:
            return _tokens_by(cost, deadline_ms - cost.fixed_ms, seq_len, start, layout, causal)

        by_kind = [can_do(cost, 0) for cost in numbers]
        counts: list[int] = []
        start = 0
        for cost, kind, most in zip(costs, kinds, room, strict=True):
            left = seq_len - start
            can = min(by_kind[kind] if anywhere else can_do(cost, start), most, left)
            count = left if can >= left else int(can // tile) * tile
            counts.append(count)
            start += count
        return counts

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
    return 2 * left_ms / (linear + math.sqrt(linear * linear + 4 * square * left_ms))
