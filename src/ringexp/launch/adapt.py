"""From prompt to prompt: the current percentages, the current plan, and what runs it on this rank.

    course = Course(session, config, workload, x, ring_of, plan, planner)
    course.begin(prompt)                       # throttle and plan of this prompt; builds anew what changed
    timing = course.run()
    course.learn(busy_ms, replan_ms)           # of all ranks: the plan of the next prompt

All ranks call these in step. Prompts below 0 are warm-up: they are learnt from, and drift has not begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from ringexp.config import Config
from ringexp.hetero.drift import percentages_at
from ringexp.launch.session import Session
from ringexp.models.workload import Workload, local_inputs
from ringexp.planning import AdaptivePlanner, Plan
from ringexp.ring.iteration import Iteration
from ringexp.ring.prefill import RingContext
from ringexp.ring.timing import IterationTiming


class Course:
    """Of one job on one rank.

    plan: of the next prompt. output: this rank's latest, empty if it has no tokens. replan_ms: what it took
    this rank to change to the plan of the present prompt, 0 if it was there already.
    """

    def __init__(
        self,
        session: Session,
        config: Config,
        workload: Workload,
        x: torch.Tensor,
        ring_of: Callable[[Plan], RingContext],
        plan: Plan,
        planner: AdaptivePlanner | None = None,
    ) -> None:
        self._session, self._config, self._workload = session, config, workload
        self._x, self._ring_of, self._planner = x, ring_of, planner
        self._built: tuple[Plan, Iteration] | None = None
        self.plan = plan
        self.output = torch.empty(0)
        self.replan_ms = 0.0

    def begin(self, prompt: int) -> None:
        """Slow the rank as this prompt is to run, and cut inputs and capture graphs anew if need be."""
        hetero = self._config.hetero
        throttled = self._session.set_percentages(percentages_at(hetero.drift, hetero.percentages, prompt))
        replanned = self._built is not None and self._built[0] is not self.plan
        self.replan_ms = 0.0
        if self._built is None or throttled or replanned:
            began = time.perf_counter()
            self._build()
            self._session.synchronize()
            self.replan_ms = (time.perf_counter() - began) * 1e3 if replanned else 0.0

    def _build(self) -> None:
        """A graph belongs to a plan and to the stream it was captured on."""
        self._built = None  # free the old one first
        plan, rank, workload = self.plan, self._session.rank, self._workload
        self._session.transport.reserve(max(plan.kv_tokens) * workload.memory.kv_token)
        ring, local = self._ring_of(plan), local_inputs(self._x, plan, rank)

        def work() -> torch.Tensor:  # a rank without tokens is not in the ring
            return workload.forward(local, ring) if plan.tokens[rank] else torch.empty(0)

        self._built = plan, self._session.iteration(self._config, work, ring)

    @property
    def iteration(self) -> Iteration:
        assert self._built, "begin comes first"
        return self._built[1]

    def run(self) -> IterationTiming:
        """The prompt, from a barrier on."""
        self._session.barrier()
        self._session.transport.barrier()
        self.output, timing = self.iteration.run()
        return timing

    def learn(self, busy_ms: Sequence[float], replan_ms: float) -> None:
        """Plan the next prompt by the busy times of all ranks and the slowest rank's `replan_ms`."""
        if self._planner:
            self.plan = self._planner.observe(busy_ms, replan_ms)
