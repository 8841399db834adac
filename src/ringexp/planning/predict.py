"""Predict how long a plan takes, by the ranks' costs and the links between them."""

from __future__ import annotations

from collections.abc import Sequence

from ringexp.planning.cost import RankCost
from ringexp.planning.links import Links
from ringexp.planning.plan import Plan
from ringexp.planning.timeline import latency_ms
from ringexp.planning.work import compute_ms


def busy_ms(plan: Plan, costs: Sequence[RankCost]) -> list[float]:
    """Return how long each rank computes in ms, all chunks together; 0 for a rank without tokens."""
    busy = [0.0] * plan.world_size
    for part in plan.chunks or (plan,):
        for rank, part_ms in zip(part.members, compute_ms(part, costs, part.members), strict=True):
            busy[rank] += part_ms
    return busy


def predicted_ms(
    plan: Plan, costs: Sequence[RankCost], links: Links | None = None, prefetch_hops: int | None = None
) -> float:
    """Predict when the slowest rank is done, in ms: the end of the plan's timeline.

    Args:
        plan: who holds what. Its chunks follow each other.
        costs: one per rank.
        links: the links between the ranks; None if nobody ever waits for keys and values.
        prefetch_hops: hops that a rank posts ahead of its compute; None for all.
    """
    alone_ms = costs[plan.members[0]].alone_ms if len(plan.members) == 1 else None
    if alone_ms is not None:
        return alone_ms
    if plan.chunks:
        return sum(predicted_ms(chunk, costs, links, prefetch_hops) for chunk in plan.chunks)
    if links is None:
        return max(busy_ms(plan, costs))
    return latency_ms(plan, costs, links, prefetch_hops)
