"""From prompt to prompt: the current percentages, the current plan, and what runs it on this rank.

    course = PromptLoop(session, config, workload, x, ring_of, plan, planner)
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
from ringexp.models.inputs import local_inputs
from ringexp.models.workload import Workload
from ringexp.planning import AdaptivePlanner, Plan
from ringexp.ring.iteration import Iteration
from ringexp.ring.loop import RingContext
from ringexp.ring.timing import IterationTiming
from ringexp.worker.session import Session


class PromptLoop:
    """Of one job on one rank.

    plan: of the next prompt. output: this rank's latest, empty if it has no tokens. replan_ms: what it took
    this rank to change to the plan of the present prompt, or to capture its graph; 0 if it had both.
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
        self._to_capture = False
        self._untold_ms = 0.0
        self.plan = plan
        self.output = torch.empty(0)
        self.replan_ms = 0.0

    def begin(self, prompt: int) -> None:
        """Slow the rank as this prompt is to run, and cut inputs and capture graphs anew if need be.

        The first prompt of a new plan runs without a graph, so that it warms up for the graph of the next.
        """
        hetero = self._config.hetero
        throttled = self._session.set_percentages(percentages_at(hetero.drift, hetero.percentages, prompt))
        replanned = self._built is not None and self._built[0] is not self.plan
        began = time.perf_counter()
        planned = replanned or (self._to_capture and not throttled)
        if replanned:
            self._built = self.plan, Iteration(*self._work())
            self._to_capture = self._session.captures(self._config, self._session.transport)
        elif self._built is None or throttled:
            self._built = self.plan, self._session.iteration(self._config, *self._work())
            self._to_capture = False
        else:
            self._capture()
        self._session.synchronize()
        self.replan_ms = (time.perf_counter() - began) * 1e3 if planned else 0.0

    def _capture(self) -> None:
        """The graph of a plan that has run one prompt without; it belongs to the stream it is captured on."""
        if self._to_capture:
            self._iteration.capture(warm=True)
            self._to_capture = False

    def _work(self) -> tuple[Callable[[], torch.Tensor], RingContext]:
        """What an iteration of the present plan does."""
        self._built = None  # free the old one first
        plan, rank, workload = self.plan, self._session.rank, self._workload
        self._session.transport.reserve(max(plan.kv_tokens) * workload.memory.kv_token)
        ring, local = self._ring_of(plan), local_inputs(self._x, plan, rank)

        def work() -> torch.Tensor:  # a rank without tokens is not in the ring
            return workload.forward(local, ring) if plan.tokens[rank] else torch.empty(0)

        return work, ring

    @property
    def _iteration(self) -> Iteration:
        assert self._built, "begin comes first"
        return self._built[1]

    def run(self) -> IterationTiming:
        """The prompt, from a barrier on."""
        self._session.barrier()
        self._iteration.line_up()
        self.output, timing = self._iteration.run()
        return timing

    def back_to_back_ms(self, count: int) -> float:
        """As `Iteration.back_to_back_ms`."""
        self._capture()
        return self._iteration.back_to_back_ms(count)

    def learn(self, busy_ms: Sequence[float], replan_ms: float) -> None:
        """Plan the next prompt by the busy times of all ranks and the slowest rank's `replan_ms`.

        Nothing is learnt from one without its graph: the host may have kept ranks busy.
        """
        self._untold_ms += replan_ms
        if self._planner and not self._to_capture:
            self.plan = self._planner.observe(busy_ms, self._untold_ms)
            self._untold_ms = 0.0
