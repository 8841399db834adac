"""Prompts on a machine that exists on paper only: costs, speeds that change, noise, and a planner."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ringexp.config import AdaptiveConfig
from ringexp.planning import AdaptivePlanner, Mask, Plan, RankCost, balance, make_plan

SEQ_LEN, TILE = 4096, 16
COST = RankCost(fixed_ms=0.5, token_ms=0.002, pair_ms=6e-6, diagonal_ms=1e-6)
REPLAN_MS = 0.5

Schedule = Callable[[int], Sequence[float]]
"""Prompt -> percentages of all ranks; prompts below 0 are warm-up."""


@dataclass
class Course:
    """An entry a prompt. times_ms: with re-planning. efficiency: best makespan / makespan, without noise."""

    times_ms: list[float]
    plans: list[Plan]
    efficiency: list[float]
    factors: list[list[float]]
    costs: list[RankCost]

    @property
    def replans(self) -> list[int]:
        """The prompts that began with another plan than the one before."""
        pairs = zip(self.plans, self.plans[1:], strict=False)
        return [prompt for prompt, (a, b) in enumerate(pairs, 1) if a.tokens != b.tokens]

    def loss(self) -> float:
        """Time over that of the best plan that stays, in hindsight: the best of many, found on a grid."""
        levels = {tuple(factors) for factors in self.factors}
        first, last = min(levels), max(levels)
        found = []
        for step in range(21):
            mix = [a ** (1 - step / 20) * b ** (step / 20) for a, b in zip(first, last, strict=True)]
            plan = planned(
                [cost.slower(factor) for cost, factor in zip(self.costs, mix, strict=True)], "zigzag"
            )
            busy = busy_ms(self.costs, plan)
            found.append(sum(makespan(busy, factors) for factors in self.factors))
        return sum(self.times_ms) / min(found) - 1


def planned(costs: Sequence[RankCost], layout: str) -> Plan:
    return make_plan(SEQ_LEN, balance(costs, SEQ_LEN, TILE, layout, Mask.causal()), layout)


def busy_ms(costs: Sequence[RankCost], plan: Plan) -> list[float]:
    return [
        cost.time_ms(count, plan.pairs(rank), plan.causal_pairs(rank))
        for rank, (cost, count) in enumerate(zip(costs, plan.tokens, strict=True))
    ]


def makespan(busy: Sequence[float], factors: Sequence[float]) -> float:
    return max(ms * factor for ms, factor in zip(busy, factors, strict=True))


def planner(
    costs: Sequence[RankCost], layout: str = "zigzag", settings: AdaptiveConfig | None = None
) -> AdaptivePlanner:
    def move(tokens: Sequence[int]) -> Plan:
        return make_plan(SEQ_LEN, tokens, layout)

    return AdaptivePlanner(
        settings or AdaptiveConfig(), costs, lambda costs: planned(costs, layout), move, TILE
    )


def simulate(
    schedule: Schedule,
    prompts: int,
    *,
    noise: float = 0.0,
    outliers: float = 0.0,
    seed: int = 0,
    layout: str = "zigzag",
    room: Sequence[int | None] = (),
    warmup: int = 2,
) -> Course:
    """A run on ranks whose costs were calibrated at the speeds of warm-up.

    noise: standard deviation of the logarithm of busy times. outliers: part that take 1.5 to 4 times as
    long. room: the most tokens of a rank.
    """
    rng = random.Random(seed)
    ranks = range(len(schedule(0)))
    start = schedule(-1)
    costs = [
        replace(COST.slower(100 / start[rank]), max_tokens=room[rank] if room else None) for rank in ranks
    ]
    adaptive = planner(costs, layout)
    course = Course([], [], [], [], costs)
    running = adaptive.plan
    for prompt in range(-warmup, prompts):
        plan = adaptive.plan
        factors = [before / percentage for before, percentage in zip(start, schedule(prompt), strict=True)]
        busy = busy_ms(costs, plan)
        replan_ms = REPLAN_MS if plan.tokens != running.tokens else 0.0
        running = plan
        seen = [
            ms
            * factor
            * math.exp(rng.gauss(0, noise))
            * (rng.uniform(1.5, 4) if rng.random() < outliers else 1)
            for ms, factor in zip(busy, factors, strict=True)
        ]
        if prompt >= 0:
            best = planned([cost.slower(factor) for cost, factor in zip(costs, factors, strict=True)], layout)
            course.times_ms.append(makespan(busy, factors) + replan_ms)
            course.plans.append(plan)
            course.efficiency.append(makespan(busy_ms(costs, best), factors) / makespan(busy, factors))
            course.factors.append(factors)
        adaptive.observe(seen, replan_ms)
    return course
