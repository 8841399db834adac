"""Planning anew between prompts from the busy times that all ranks see: a pure function of what was gathered.

    planner = AdaptivePlanner(settings, costs, make, move, tile)
    plan = planner.plan                                  # balanced by calibrated costs
    plan = planner.observe(busy_ms, replan_ms)           # after each prompt; the plan of the next one

**What is known.** busy_ms of rank i / what its costs say of its part = exp(f_i), the rank's factor now
(`FactorEstimate`). It does not depend on the plan, so a prompt tells what *any* plan would have taken:
M(plan, f) = max over ranks of busy_i(plan) x exp(f_i), plus what the plan's hops come late. All below is made
of such makespans: of the present estimate, or of each prompt of the last `memory`.

**Follow.** The target is the balanced plan of the present factors. It has to gain more than `min_gain`, than
three standard errors of the estimates, and than re-planning costs, spread over `horizon` prompts.

**Settle.** Speeds that flip faster than an estimate can follow are no change to follow, but another plan may
suit their mix: the balanced plans of the mean and of the upper quartile of the last SETTLE prompts are tried
on these prompts. The better one is taken if it would have gained as much, leaving out its two best prompts.

**What a move may cost.** Following loses where speeds flip back: until that is seen, a prompt or two run on
the wrong plan. From the second time on that a rank came back to a speed it had before, within the remembered
prompts, a move is allowed only if it makes the worst of the remembered speeds less bad, or if

    risk + cost of re-planning <= tolerance x (time spent + horizon x a prompt) - debt + forgone / 2

risk: what the target loses to the current plan, until it is seen, if any remembered speeds come back. debt:
what was spent, since speeds first came back, more than by the static plan that is the best in hindsight, of
those ever used and the target; a move to that plan itself may ignore it. forgone: what the target would have
saved already, for staying has a price too (half of it counts, as in ski rental: who waits for it to grow to
the risk loses no more than a fixed part). A change and a recovery are thus followed at once; flips after
that add to the debt if they do not pay, and make the next move harder, until the plan is the static one;
flips that last long enough to pay are followed for good, since they keep the debt below 0.

**Ranks without tokens** are not measured: their factor stays. After `probe_after` prompts such a rank gets
one tile, if at its calibrated costs it would be in the plan. If it turns out as slow as before, the next
probe waits twice as long, and in any case until what it costs is PROBE_PART of the time since the last.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ringexp.config import AdaptiveConfig
from ringexp.errors import UserError
from ringexp.planning.cost import RankCost
from ringexp.planning.estimate import FactorEstimate
from ringexp.planning.links import Links
from ringexp.planning.plan import Plan
from ringexp.planning.predict import busy_ms, predicted_ms

SETTLE, ODD = 12, 2
"""Prompts that a plan for a mix of speeds is tried on, and how many of them do not count."""

PROBE_PART = 0.05
"""Part of the time that trying out ranks without tokens may take."""

ERRORS = 3.0
"""Standard errors of the estimates that a gain has to exceed."""

LAG = {"slower": 1, "faster": 2}
"""Prompts until it is seen that a rank fell back to, or came back from, a speed it had before."""

NOTICEABLE = 0.05
"""Factors that differ by less are the same speed."""

MOST_USED = 8
"""Plans that are kept to be compared with."""

Factors = Sequence[float]
"""One logarithm per rank."""


@dataclass(frozen=True)
class _Candidate:
    """A plan, each rank's busy time by calibrated costs, and what hops add to the slowest."""

    plan: Plan
    busy_ms: tuple[float, ...]
    late_ms: float

    def makespan_ms(self, factors: Factors) -> float:
        return self.late_ms + max(
            ms * math.exp(factor) for ms, factor in zip(self.busy_ms, factors, strict=True)
        )

    def most_gain_ms(self, factors: Factors) -> float:
        """Return an upper limit of what any plan can save.

        No plan lets all ranks finish before the first one finishes now, since work would be left.
        """
        times_ms = [ms * math.exp(factor) for ms, factor in zip(self.busy_ms, factors, strict=True)]
        return self.late_ms + max(times_ms) - min(times_ms)


class AdaptivePlanner:
    """Plan anew between prompts; the same on every rank, since all see the same busy times.

    Attributes:
        plan: the plan of the next prompt.
    """

    def __init__(
        self,
        settings: AdaptiveConfig,
        costs: Sequence[RankCost],
        make: Callable[[Sequence[RankCost]], Plan],
        move: Callable[[Sequence[int]], Plan],
        tile: int,
        units: int = 1,
        links: Links | None = None,
    ) -> None:
        """Begin with the balanced plan.

        Args:
            settings: when to plan anew.
            costs: per rank the costs of one unit of the workload.
            make: returns the balanced plan by these costs.
            move: returns the plan of these token counts.
            tile: tokens that are given out together.
            units: the number of units of the workload.
            links: the links that `make` counts with.
        """
        self._settings, self._costs, self._make, self._move = settings, costs, make, move
        self._tile, self._units, self._links = tile, units, links
        self._estimates = [FactorEstimate() for _ in costs]
        self._seen: deque[Factors] = deque(maxlen=settings.memory)
        self._levels: deque[Factors] = deque(maxlen=settings.memory)
        self._paid_ms: deque[float] = deque(maxlen=settings.memory)
        self._replan_ms = 0.0
        self._current = self._candidate(make(costs))
        self._used = [self._current]
        self._since = 0  # prompts that the current plan has run
        self._returns: list[int] = []  # prompts ago, each time that a rank came back to a speed it had
        self._without = [0] * len(costs)  # prompts that each rank has had no tokens for
        self._wait = [settings.probe_after] * len(costs)

    @property
    def plan(self) -> Plan:
        return self._current.plan

    def observe(self, busy_ms: Sequence[float], replan_ms: float = 0.0) -> Plan:
        """Take in one prompt that ran by the current plan. Return the plan of the next prompt.

        Args:
            busy_ms: the busy time per rank. Times of ranks without tokens do not count.
            replan_ms: the time it took to change to the current plan before that prompt; 0 if it did not.
        """
        self._replan_ms = replan_ms or self._replan_ms
        seen = []
        for rank, (estimate, ms) in enumerate(zip(self._estimates, busy_ms, strict=True)):
            if ms > 0 and (predicted_ms := self._current.busy_ms[rank]) > 0:
                seen.append(math.log(ms / predicted_ms))
                estimate.observe(seen[-1])
                self._without[rank] = 0
            else:
                seen.append(estimate.level)
                self._without[rank] += 1
        self._note_returns()
        self._seen.append(seen)
        self._levels.append([estimate.level for estimate in self._estimates])
        self._paid_ms.append(self._current.makespan_ms(seen) + replan_ms)
        self._since += 1
        choice = self._followed() or self._settled() or self._probed()
        if choice:
            self._current, self._since = choice, 0
            others = [used for used in self._used if used.plan.tokens != choice.plan.tokens]
            self._used = [*others[1 - MOST_USED :], choice]
        return self.plan

    def _note_returns(self) -> None:
        ages = [age + 1 for age in self._returns if age + 1 < self._settings.memory]
        self._returns = ages + [0] * any(estimate.returned for estimate in self._estimates)

    def _followed(self) -> _Candidate | None:
        """Return the plan of the present speeds if the move to it pays, else None."""
        now = self._levels[-1]
        if self._current.most_gain_ms(now) <= self._least_gain_ms:
            return None
        target = self._balanced(now)
        gain_ms = self._gain_ms(target, now)
        if gain_ms <= self._least_gain_ms or not self._allowed(target):
            return None
        changed = any(estimate.changed for estimate in self._estimates)
        better = all(self._gain_ms(target, seen) > 0 for seen in list(self._seen)[-2:])
        return target if changed or better else None

    def _settled(self) -> _Candidate | None:
        """Return a plan by which the latest prompts, at mixed speeds, would have been faster, or None."""
        if self._since < SETTLE:
            return None
        recent = list(self._seen)[-SETTLE:]
        if sum(map(self._current.most_gain_ms, recent)) <= self._least_gain_ms * SETTLE:
            return None
        by_rank = [sorted(factors) for factors in zip(*recent, strict=True)]
        mean = [sum(factors) / SETTLE for factors in by_rank]
        upper = [factors[-1 - SETTLE // 4] for factors in by_rank]
        best, most_ms = None, self._least_gain_ms * SETTLE
        for target in (self._balanced(mean), self._balanced(upper)):
            gains_ms = sorted(self._gain_ms(target, seen) for seen in recent)
            if sum(gains_ms[:-ODD]) > most_ms and self._allowed(target):
                best, most_ms = target, sum(gains_ms[:-ODD])
        return best

    def _probed(self) -> _Candidate | None:
        """Return the current plan with one tile for a rank that has long been without tokens, or None."""
        now = self._levels[-1]
        for rank, without in enumerate(self._without):
            most = self._costs[rank].max_tokens
            if not 0 < self._wait[rank] <= without or (most is not None and most < self._tile):
                continue
            hoped = [0.0 if i == rank else level for i, level in enumerate(now)]
            tokens = list(self.plan.tokens)
            giver = max(range(len(tokens)), key=lambda i: (tokens[i], -i))
            if not self._balanced(hoped).plan.tokens[rank] or tokens[giver] <= self._tile:
                continue
            tokens[giver], tokens[rank] = tokens[giver] - self._tile, self._tile
            since_ms = without * self._current.makespan_ms(now)
            with suppress(UserError):
                probe = self._candidate(self._move(tokens))
                if -self._gain_ms(probe, now) <= PROBE_PART * since_ms:
                    self._wait[rank] *= 2
                    return probe
        return None

    @property
    def _least_gain_ms(self) -> float:
        """The least time in ms that a new plan has to save per prompt."""
        uncertain = ERRORS * max(estimate.error for estimate in self._estimates)
        now_ms = self._current.makespan_ms(self._levels[-1])
        return max(self._settings.min_gain, uncertain) * now_ms + self._replan_ms / self._settings.horizon

    def _allowed(self, target: _Candidate) -> bool:
        """Tell whether a move to the target keeps to the limit on the cost of moves."""
        if len(self._returns) < 2 or self._worst_ms(target) < self._worst_ms(self._current):
            return True
        plans, flips = [*self._used, target], self._returns[0] + 1
        flipped = list(self._seen)[-flips:]
        totals_ms = [sum(plan.makespan_ms(seen) for seen in flipped) for plan in plans]
        static = plans[totals_ms.index(min(totals_ms))]
        spent_ms = sum(list(self._paid_ms)[-flips:])
        now_ms = self._current.makespan_ms(self._levels[-1])
        debt_ms = spent_ms - min(totals_ms)
        left_ms = self._settings.tolerance * (spent_ms + self._settings.horizon * now_ms) - debt_ms
        if static.plan.tokens == target.plan.tokens:
            left_ms = max(left_ms, 0.0)
        return self._risk_ms(target) + self._replan_ms <= left_ms + self._forgone_ms(target) / 2

    def _worst_ms(self, candidate: _Candidate) -> float:
        """Return the longest time in ms that a prompt takes at any of the remembered speeds."""
        return max(candidate.makespan_ms(factors) for factors in self._levels)

    def _risk_ms(self, target: _Candidate) -> float:
        """Return the most ms that the target loses to the current plan until old speeds are seen again."""
        now = self._levels[-1]
        most_ms = 0.0
        for factors in self._levels:
            slower = any(then > level + NOTICEABLE for then, level in zip(factors, now, strict=True))
            most_ms = max(most_ms, -LAG["slower" if slower else "faster"] * self._gain_ms(target, factors))
        return most_ms

    def _forgone_ms(self, target: _Candidate) -> float:
        """Return the ms that the target would have saved from the best moment since the last move on."""
        most_ms = total_ms = 0.0
        for seen in list(self._seen)[: -1 - self._since : -1]:
            total_ms += self._gain_ms(target, seen)
            most_ms = max(most_ms, total_ms)
        return most_ms

    def _gain_ms(self, target: _Candidate, factors: Factors) -> float:
        """Return the ms that the target saves of a prompt with these factors."""
        return self._current.makespan_ms(factors) - target.makespan_ms(factors)

    def _balanced(self, factors: Factors) -> _Candidate:
        """Return the balanced plan at these factors, or the current plan if it is that or none exists."""
        costs = [cost.slower(math.exp(factor)) for cost, factor in zip(self._costs, factors, strict=True)]
        plan = self.plan
        with suppress(UserError):  # too few tokens on a rank for the chunks of the prompt
            plan = self._make(costs)
        return self._current if plan.tokens == self.plan.tokens else self._candidate(plan)

    def _candidate(self, plan: Plan) -> _Candidate:
        by_costs_ms = [self._units * ms for ms in busy_ms(plan, self._costs)]
        late_ms = 0.0
        if self._links:
            late_ms = self._units * predicted_ms(plan, self._costs, self._links) - max(by_costs_ms)
        return _Candidate(plan, tuple(by_costs_ms), max(late_ms, 0.0))
