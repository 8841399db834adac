"""The cost of work per rank, as a time in ms.

A rank's time for a tokens of its own that attend in p query-key pairs, d of them in causal blocks, is

    fixed_ms + token_ms * a + pair_ms * p + diagonal_ms * d

Under weighted zigzag p is about a * seq_len / 2 and d is a * (a + 1) / 2, so the time depends on the rank's
own tokens only. Under contiguous p depends on where its span begins. `waterfill` splits by these costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


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
