"""From prompt to prompt: the current percentages, the current plan, and what runs it on this rank.

    loop = PromptLoop(session, schedule, inputs, graphs, plan, planner)
    loop.begin(prompt)                       # throttle and plan of this prompt; builds what has changed
    timing = loop.run()
    loop.learn(busy_ms, replan_ms)           # of all ranks: decides the plan of the next prompt

All ranks call these in step. Prompts below 0 are warm-up: the planner learns from them, and drift has not
begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from ringexp.config import HeteroConfig
from ringexp.hetero.drift import percentages_at
from ringexp.models.inputs import local_inputs
from ringexp.models.workload import Workload
from ringexp.planning import AdaptivePlanner, Plan
from ringexp.ring.context import RingContext
from ringexp.ring.iteration import Iteration
from ringexp.ring.timing import IterationTiming
from ringexp.worker.cuda_graphs import CudaGraphs
from ringexp.worker.device import synchronize
from ringexp.worker.session import Session


class Stage(Enum):
    """How far the iteration of the present plan has been built."""

    UNBUILT = "nothing has been built"
    TRIAL = "a new plan's first prompt runs without a graph, which warms up for the graph of the next"
    FINAL = "the iteration runs as it is measured"


@dataclass(frozen=True)
class RingWork:
    """What the ranks compute in every prompt, whatever the plan.

    Attributes:
        workload: the model or attention module.
        x: the whole prompt.
        ring_of: makes this rank's end of the ring for a plan.
    """

    workload: Workload
    x: torch.Tensor
    ring_of: Callable[[Plan], RingContext]


class PromptLoop:
    """Run one job's prompts on this rank, with a new plan between prompts if the partitioner adapts.

    Attributes:
        plan: the plan of the next prompt.
        output: this rank's latest output; empty if the rank has no tokens.
        replan_ms: the time this rank took to change to the plan of the present prompt, or to capture its
            graph; 0 if it had both.
    """

    def __init__(
        self,
        session: Session,
        hetero: HeteroConfig,
        work: RingWork,
        graphs: CudaGraphs,
        plan: Plan,
        planner: AdaptivePlanner | None = None,
    ) -> None:
        """Begin with `plan`.

        Args:
            session: this rank.
            hetero: the percentages of the ranks, and their drift.
            work: what every prompt computes.
            graphs: whether prompts are CUDA graphs.
            plan: the plan of the first prompt.
            planner: decides later plans; None keeps the first.
        """
        self._session, self._hetero, self._work, self._graphs = session, hetero, work, graphs
        self._planner = planner
        self._stage = Stage.UNBUILT
        self._built: tuple[Plan, Iteration] | None = None
        self._unreported_ms = 0.0
        self.plan = plan
        self.output = torch.empty(0)
        self.replan_ms = 0.0

    def begin(self, prompt: int) -> None:
        """Slow the rank as this prompt is to run, and build anew what the throttle or the plan changed."""
        percentages = percentages_at(self._hetero.drift, self._hetero.percentages, prompt)
        throttled = self._session.throttle.set_percentages(percentages)
        replanned = self._built is not None and self._built[0] is not self.plan
        counts = replanned or (self._stage is Stage.TRIAL and not throttled)
        began = time.perf_counter()
        if replanned:
            self._build_trial()
        elif self._stage is Stage.UNBUILT or throttled:
            self._build_final()
        else:
            self._finish_trial()
        synchronize(self._session.device)
        self.replan_ms = (time.perf_counter() - began) * 1e3 if counts else 0.0

    def _build_trial(self) -> None:
        work, ring = self._ring_work()
        self._built = self.plan, Iteration(work, ring)
        self._stage = Stage.TRIAL if self._graphs.captures(ring.transport) else Stage.FINAL

    def _build_final(self) -> None:
        self._built = self.plan, self._graphs.iteration(*self._ring_work())
        self._stage = Stage.FINAL

    def _finish_trial(self) -> None:
        """Capture the graph of a plan that has run one prompt without; it belongs to the current stream."""
        if self._stage is Stage.TRIAL:
            self._iteration.capture(warm=True)
            self._stage = Stage.FINAL

    def _ring_work(self) -> tuple[Callable[[], torch.Tensor], RingContext]:
        """Return what an iteration of the present plan does, and its ring."""
        self._built = None  # free the old one first
        plan, rank, workload = self.plan, self._session.rank, self._work.workload
        self._session.transport.memory.reserve(max(plan.kv_tokens) * workload.memory.kv_token)
        ring, local = self._work.ring_of(plan), local_inputs(self._work.x, plan, rank)

        def forward() -> torch.Tensor:  # a rank without tokens is not in the ring
            return workload.forward(local, ring) if plan.tokens[rank] else torch.empty(0)

        return forward, ring

    @property
    def _iteration(self) -> Iteration:
        assert self._built, "begin comes first"
        return self._built[1]

    def run(self) -> IterationTiming:
        """Run the prompt, from a barrier on, and return what was measured."""
        self._session.communicator.barrier()
        self._iteration.line_up()
        self.output, timing = self._iteration.run()
        return timing

    def back_to_back_ms(self, count: int) -> float:
        """Return the time of one of `count` prompts that nothing separates."""
        self._finish_trial()
        return self._iteration.back_to_back_ms(count)

    def learn(self, busy_ms: Sequence[float], replan_ms: float) -> None:
        """Plan the next prompt.

        Nothing is learnt from a trial: the host may have kept ranks busy.

        Args:
            busy_ms: the busy time of each rank in the present prompt.
            replan_ms: the slowest rank's `replan_ms`.
        """
        self._unreported_ms += replan_ms
        if self._planner and self._stage is not Stage.TRIAL:
            self.plan = self._planner.observe(busy_ms, self._unreported_ms)
            self._unreported_ms = 0.0
