"""Links between ranks: what passing a shard on costs, over one kind of link or over several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """The cost of sending over a link in one direction, while all ranks send and receive.

    Attributes:
        latency_ms: ms per transfer.
        unit_ms: ms per unit that is sent: per byte of a link as such, per token where shards are planned.
    """

    latency_ms: float
    unit_ms: float

    @classmethod
    def of_bandwidth(cls, latency_us: float, gbps: float) -> Link:
        """Return the link per byte that has this latency in microseconds and bandwidth in GB/s."""
        return cls(latency_us / 1e3, 1 / gbps / 1e6)

    @property
    def gbps(self) -> float | None:
        """GB/s of a link per byte; None if a large transfer is as quick as a small one."""
        return 1e-6 / self.unit_ms if self.unit_ms else None

    def time_ms(self, units: float) -> float:
        """Return the time of one transfer. A transfer of nothing takes no time."""
        return self.latency_ms + self.unit_ms * units if units else 0.0

    def scaled(self, factor: float) -> Link:
        """Return the same link in a unit that is `factor` units of this one, such as the bytes of a token."""
        return Link(self.latency_ms, self.unit_ms * factor)


@dataclass(frozen=True)
class EqualLinks:
    """The links of a ring in which all are alike.

    Attributes:
        link: the link per token.
        direct: whether each shard comes straight from its owner rather than from the rank before. The
            transport decides that (`TransportSpec.direct`).
    """

    link: Link
    direct: bool = False

    def into(self, members: Sequence[int]) -> list[Link]:
        """Return the link over which shards come to each member of a ring, in the order of the ring."""
        return [self.link] * len(members)


@dataclass(frozen=True)
class NodeLinks:
    """The links of a ring over nodes, in which shards are forwarded.

    Attributes:
        nodes: per rank the number of its node.
        within: per rank its link, per token, to other ranks of its node. Between two ranks the slower counts.
        across: the link, per token, between nodes.
    """

    nodes: Sequence[int]
    within: Sequence[Link]
    across: Link
    direct = False

    def into(self, members: Sequence[int]) -> list[Link]:
        """Return the link over which shards come to each member of a ring, in the order of the ring."""
        return [self._between(members[place - 1], rank) for place, rank in enumerate(members)]

    def _between(self, sender: int, receiver: int) -> Link:
        if self.nodes[sender] != self.nodes[receiver]:
            return self.across
        return max(
            self.within[sender], self.within[receiver], key=lambda link: (link.unit_ms, link.latency_ms)
        )


Links = EqualLinks | NodeLinks
