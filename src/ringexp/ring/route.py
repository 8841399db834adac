"""The ring as one of its members sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringexp.planning import ring_members


@dataclass(frozen=True)
class Route:
    """A ring in which each shard goes from member to member, in rank order.

    Attributes:
        members: The ranks that hold tokens, in rank order.
        place: The place of this rank among them.
    """

    members: list[int]
    place: int

    @classmethod
    def of(cls, tokens: Sequence[int], rank: int) -> Route:
        """Return the route of `rank`, where rank i holds tokens[i] tokens."""
        members = ring_members(tokens)
        return cls(members, members.index(rank))

    @property
    def hops(self) -> int:
        """The number of shards that arrive."""
        return len(self.members) - 1

    def source(self, hop: int) -> int:
        """Return the rank whose shard arrives with a hop; hop 0 is the rank's own shard."""
        return self.members[(self.place - hop) % len(self.members)]

    @property
    def sources(self) -> list[int]:
        """The ranks whose shards arrive, in order of arrival, this rank first."""
        return [self.source(hop) for hop in range(self.hops + 1)]

    @property
    def after(self) -> int:
        """The neighbour to which this rank forwards shards."""
        return self.source(-1)

    @property
    def before(self) -> int:
        """The neighbour from which shards come."""
        return self.source(1)
