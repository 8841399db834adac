"""From a request and the ranks' speeds to the plan: the same function in the launcher and on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ringexp.choices import PARTITIONERS
from ringexp.config import AdaptiveConfig
from ringexp.planning.adaptive import AdaptivePlanner
from ringexp.planning.apportion import apportion
from ringexp.planning.balanced import balanced_plan, costs_within
from ringexp.planning.cost import RankCost
from ringexp.planning.links import Links
from ringexp.planning.plan import Plan, place_tokens
from ringexp.planning.request import PlanRequest
from ringexp.planning.speeds import SpeedSource


def plan_for(
    request: PlanRequest,
    source: SpeedSource,
    max_tokens: Sequence[int | None] | None = None,
    links: Links | None = None,
) -> Plan:
    """Plan a prompt by the request's partitioner.

    Args:
        request: the prompt and the rules.
        source: what is known of the ranks' speeds.
        max_tokens: the most tokens that each rank's memory holds, None for no limit. Only a partitioner that
            makes plans by itself respects it.
        links: the links between the ranks. With them such a partitioner leaves out ranks that do not pay.

    Raises:
        UserError: if the prompt has too few tiles, or does not fit the ranks' memory.
    """
    spec = PARTITIONERS[request.partitioner]
    implementation = spec.load()
    if spec.makes_plan:
        plan = implementation(request.unchunked, source, max_tokens, links)
    else:
        weights = list(implementation(source, request.settings))
        plan = place_tokens(request.unchunked, apportion(weights, request.seq_len, request.tile))
    return plan if request.chunks == 1 else place_tokens(request, plan.tokens)


def adaptive_planner(
    request: PlanRequest,
    source: SpeedSource,
    units: int,
    max_tokens: Sequence[int | None] | None = None,
    links: Links | None = None,
) -> AdaptivePlanner:
    """Return what plans anew between prompts. It begins with the plan of `plan_for`.

    Args:
        request: the prompt, and the settings of the adaptive partitioner.
        source: gives the ranks' calibrated costs.
        units: how often a prompt repeats the work that the costs are about.
        max_tokens: the most tokens that each rank's memory holds, None for no limit.
        links: the links between the ranks, None if they are not known.
    """

    def make(costs: Sequence[RankCost]) -> Plan:
        plan = balanced_plan(request.unchunked, costs, links)
        return plan if request.chunks == 1 else move(plan.tokens)

    def move(tokens: Sequence[int]) -> Plan:
        return place_tokens(replace(request, split="tokens"), tokens)

    settings = request.settings if isinstance(request.settings, AdaptiveConfig) else AdaptiveConfig()
    costs = costs_within(source.costs(request.mask), max_tokens)
    return AdaptivePlanner(settings, costs, make, move, request.tile, units, links)
