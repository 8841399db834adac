"""The balanced plan with its hops counted: who is worth having in the ring, then water-filling among them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ringexp.errors import UserError
from ringexp.planning.cost import RankCost
from ringexp.planning.links import Links
from ringexp.planning.plan import Plan, place_tokens
from ringexp.planning.predict import busy_ms, predicted_ms
from ringexp.planning.request import PlanRequest
from ringexp.planning.speeds import SpeedSource
from ringexp.planning.timeline import carried_ms
from ringexp.planning.waterfill import balance

FINE = 8
"""Up to this many members every number is tried. Above it, each step leaves out one in this many."""


def by_costs(
    request: PlanRequest,
    source: SpeedSource,
    max_tokens: Sequence[int | None] | None = None,
    links: Links | None = None,
) -> Plan:
    """Return the balanced plan by the costs of a source. It is the partitioner `balanced`."""
    return balanced_plan(request, costs_within(source.costs(request.mask), max_tokens), links)


def costs_within(costs: Sequence[RankCost], max_tokens: Sequence[int | None] | None) -> list[RankCost]:
    """Return costs that know the most tokens that each rank's memory holds; None for no limit."""
    limits = max_tokens or [None] * len(costs)
    return [cost.capped(limit) for cost, limit in zip(costs, limits, strict=True)]


def balanced_plan(request: PlanRequest, costs: Sequence[RankCost], links: Links | None = None) -> Plan:
    """Return the plan of all ranks, or of the fastest of them if that is done earlier with its hops.

    Of several plans that are done at the same time, the one with most ranks is returned.

    Args:
        request: the prompt.
        costs: one per rank.
        links: the links between the ranks. Without them all ranks take part.

    Raises:
        UserError: if the ranks' memories together cannot hold the prompt.
    """
    everyone = range(len(costs))
    plans = [_filled(request, costs, everyone)]
    if links is None:
        return plans[0]
    seq_len = request.seq_len
    alone_ms = [cost.time_ms(seq_len, seq_len**2 / 2, seq_len**2 / 2) for cost in costs]
    fastest = sorted(everyone, key=lambda rank: (alone_ms[rank], -rank))
    for count in _member_counts(len(costs))[1:]:
        with suppress(UserError):  # the others' memory does not hold it
            plans.append(_filled(request, costs, sorted(fastest[:count])))
    bounds = [_earliest_ms(plan, costs, links) for plan in plans]
    predicted: list[tuple[float, int]] = []
    for index in sorted(range(len(plans)), key=lambda index: (bounds[index], index)):
        if predicted and bounds[index] > min(predicted)[0]:
            break
        predicted.append((predicted_ms(plans[index], costs, links, request.prefetch_hops), index))
    return plans[min(predicted)[1]]


def _filled(request: PlanRequest, costs: Sequence[RankCost], ranks: Sequence[int]) -> Plan:
    """Return the plan by water-filling among these ranks. The others get no tokens."""
    with_hops = {cost: cost.with_hops(len(ranks) - 1) for cost in set(costs)}
    costs_of_ranks = [with_hops[costs[rank]] for rank in ranks]
    counts = balance(costs_of_ranks, request.seq_len, request.tile, request.layout, request.mask)
    tokens = [0] * len(costs)
    for rank, count in zip(ranks, counts, strict=True):
        tokens[rank] = count
    return place_tokens(replace(request, split="tokens"), tokens)


def _member_counts(ranks: int) -> list[int]:
    """Return the numbers of members to try, from all ranks down to one."""
    counts = [ranks]
    while counts[-1] > 1:
        counts.append(counts[-1] - max(1, counts[-1] // FINE))
    return counts


def _earliest_ms(plan: Plan, costs: Sequence[RankCost], links: Links) -> float:
    """Return a lower bound in ms: every member computes its part, and all shards have to reach it."""
    if len(plan.members) == 1:
        return predicted_ms(plan, costs, links)
    latest = max(*busy_ms(plan, costs), carried_ms(plan, links))
    return latest * (1 - 1e-9)  # sums in another order round otherwise
