"""The balanced plan with its hops counted: who is worth having in the ring, then water-filling among them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ringexp.errors import UserError
from ringexp.planning.cost import RankCost
from ringexp.planning.links import Links
from ringexp.planning.masks import Mask
from ringexp.planning.plan import Plan, make_plan
from ringexp.planning.timeline import carried_ms
from ringexp.planning.waterfill import balance

FINE = 8
"""So many members or fewer: every number is tried; above, in steps of one part in so many."""


def balanced_plan(
    costs: Sequence[RankCost],
    seq_len: int,
    tile: int,
    layout: str,
    mask: Mask,
    links: Links | None = None,
    prefetch_hops: int | None = None,
    starts: Sequence[int] = (),
) -> Plan:
    """The plan of all ranks, or of all but the slowest one, two, ... where that is earlier with its hops.

    Without `links` that of all ranks. starts: see Plan. Of several that are as early, the one with most ranks
    asked. Raises UserError if the ranks' memories together cannot hold the prompt.
    """
    everyone = range(len(costs))

    def filled(ranks: Sequence[int]) -> Plan:
        tokens = _counts(ranks, costs, seq_len, tile, layout, mask)
        return make_plan(seq_len, tokens, layout, mask=mask, starts=starts)

    plans = [filled(everyone)]
    if links is None:
        return plans[0]
    alone_ms = [cost.time_ms(seq_len, seq_len**2 / 2, seq_len**2 / 2) for cost in costs]
    fastest = sorted(everyone, key=lambda rank: (alone_ms[rank], -rank))
    for count in _member_counts(len(costs))[1:]:
        with suppress(UserError):  # the others' memory does not hold it
            plans.append(filled(sorted(fastest[:count])))
    bounds = [_earliest_ms(plan, costs, links) for plan in plans]
    found: list[tuple[float, int]] = []
    for index in sorted(range(len(plans)), key=lambda index: (bounds[index], index)):
        if found and bounds[index] > min(found)[0]:
            break
        found.append((plans[index].predicted_ms(costs, links, prefetch_hops), index))
    return plans[min(found)[1]]


def _counts(
    ranks: Sequence[int], costs: Sequence[RankCost], seq_len: int, tile: int, layout: str, mask: Mask
) -> list[int]:
    """Tokens of all ranks: water-filling among these, the others get none."""
    with_hops = {cost: cost.with_hops(len(ranks) - 1) for cost in set(costs)}
    counts = balance([with_hops[costs[rank]] for rank in ranks], seq_len, tile, layout, mask)
    tokens = [0] * len(costs)
    for rank, count in zip(ranks, counts, strict=True):
        tokens[rank] = count
    return tokens


def _member_counts(ranks: int) -> list[int]:
    """From all of them down to one."""
    counts = [ranks]
    while counts[-1] > 1:
        counts.append(counts[-1] - max(1, counts[-1] // FINE))
    return counts


def _earliest_ms(plan: Plan, costs: Sequence[RankCost], links: Links) -> float:
    """No ring is done before each member has computed all, nor before all shards have come to it."""
    if len(plan.members) == 1:
        return plan.predicted_ms(costs, links)
    latest = max(*plan.busy_ms(costs), carried_ms(plan, links))
    return latest * (1 - 1e-9)  # sums in another order round otherwise
