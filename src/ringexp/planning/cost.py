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
    """The times in ms that work takes on one rank.

    Costs from a calibration with one other rank have the cost of its shard in fixed_ms and token_ms.

    Attributes:
        fixed_ms: once, for a rank with tokens.
        token_ms: per own token, for linear layers.
        pair_ms: per query-key pair of attention.
        diagonal_ms: on top of that per pair in a causal block, which kernels do less well.
        max_tokens: the most tokens that the rank's memory holds; None for no limit.
        hop_ms: per shard of another rank that it computes with, for launches.
        hop_token_ms: per own token and such shard, for merging.
        alone_ms: the measured time of the plan's whole prompt on this rank alone; None if these parts are to
            predict it.
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
        """Return the time of a rank's work. A rank without tokens takes no time."""
        return self.linear_ms(tokens) + self.attention_ms(pairs, causal_pairs) if tokens else 0.0

    def with_hops(self, hops: int) -> RankCost:
        """Return the same costs with those of `hops` hops in fixed_ms and token_ms."""
        fixed_ms, token_ms = self.fixed_ms + hops * self.hop_ms, self.token_ms + hops * self.hop_token_ms
        return replace(self, fixed_ms=fixed_ms, token_ms=token_ms, hop_ms=0.0, hop_token_ms=0.0)

    def capped(self, most: int | None) -> RankCost:
        """Return the same costs with a limit of `most` tokens; None for no further limit."""
        caps = [cap for cap in (self.max_tokens, most) if cap is not None]
        return replace(self, max_tokens=min(caps, default=None))

    def slower(self, factor: float) -> RankCost:
        """Return the costs of a rank on which everything takes `factor` times as long."""
        times = ("fixed_ms", "token_ms", "pair_ms", "diagonal_ms", "hop_ms", "hop_token_ms")
        alone_ms = None if self.alone_ms is None else factor * self.alone_ms
        return replace(self, alone_ms=alone_ms, **{name: factor * getattr(self, name) for name in times})

    def linear_ms(self, tokens: int) -> float:
        return self.fixed_ms + self.token_ms * tokens

    def attention_ms(self, pairs: float, causal_pairs: float) -> float:
        return self.pair_ms * pairs + self.diagonal_ms * causal_pairs
