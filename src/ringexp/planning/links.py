"""What passing a shard on costs, over one kind of link or over several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HopCost:
    """Milliseconds that passing a shard on takes: once, and for each of its tokens.

    direct: shards come straight from their owner (IPC), not from rank to rank.
    """

    latency_ms: float
    token_ms: float
    direct: bool = False

    def time_ms(self, tokens: int) -> float:
        """A hop without tokens takes no time."""
        return self.latency_ms + self.token_ms * tokens if tokens else 0.0

    def into(self, members: Sequence[int]) -> list[HopCost]:
        """The link on which shards come to each member of a ring, in the order of the ring."""
        return [self] * len(members)


@dataclass(frozen=True)
class NodeLinks:
    """Ranks on nodes, entries one a rank: its node, and its link to others there; `across` joins nodes.

    Of two ranks in a node the slower link counts. Shards are sent on.
    """

    nodes: Sequence[int]
    within: Sequence[HopCost]
    across: HopCost
    direct = False

    def into(self, members: Sequence[int]) -> list[HopCost]:
        """As `HopCost.into`."""
        return [self._between(members[place - 1], rank) for place, rank in enumerate(members)]

    def _between(self, sender: int, receiver: int) -> HopCost:
        if self.nodes[sender] != self.nodes[receiver]:
            return self.across
        return max(self.within[sender], self.within[receiver], key=lambda hop: (hop.token_ms, hop.latency_ms))


Links = HopCost | NodeLinks
