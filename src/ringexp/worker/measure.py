"""The prompts of a job: warm-up, then timed ones, then all in a row. All ranks do it in step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from statistics import median

import torch

from ringexp.hetero.drift import drift_label
from ringexp.planning import Plan
from ringexp.ring.timing import IterationTiming
from ringexp.tracking import metrics
from ringexp.tracking.results import Prompt
from ringexp.tracking.tracker import Tracker
from ringexp.worker.device import peak_memory_bytes, reset_peak_memory
from ringexp.worker.prepare import PreparedJob, has_whole_devices
from ringexp.worker.prompt_loop import PromptLoop

WARM_MS = 300.0
"""A GPU that meets its power limit shows it within this time."""

MOST_WARM = 50
"""The largest number of prompts that are added to warm up."""

WARM_UP = -1
"""The number of every prompt that is not timed; drift has not begun."""


@dataclass(frozen=True)
class Measured:
    """The figures of a job's timed prompts.

    Attributes:
        iterations: per prompt, the timings of all ranks.
        prompts: per prompt, what was set for it.
        back_to_back_ms: the time of a prompt where nothing separates prompts.
        peak_memory_bytes: the peak of each rank's memory.
        plan: the latest plan.
        output: this rank's output by that plan.
    """

    iterations: list[list[IterationTiming]]
    prompts: list[Prompt]
    back_to_back_ms: float
    peak_memory_bytes: list[int]
    plan: Plan
    output: torch.Tensor

    @property
    def settled(self) -> list[list[IterationTiming]]:
        """The prompts that ran with the latest plan."""
        return self.iterations[-metrics.with_last_plan(self.prompts) :]

    @property
    def latencies_ms(self) -> list[float]:
        return [metrics.latency_ms(ranks) for ranks in self.iterations]

    def as_reference(self) -> dict[str, float]:
        """Return the figures that are stored as a reference.

        They are the median latency in ms, and the interquartile range divided by the median.
        """
        latency_ms = median(self.latencies_ms)
        return {"latency_ms_median": latency_ms, "spread": metrics.spread_ms(self.latencies_ms) / latency_ms}


def measure(job: PreparedJob, role: str, tracker: Tracker | None) -> Measured:
    """Warm up, then time each prompt from a common start, then all of them in a row.

    Args:
        job: what is measured.
        role: the role of the job, which the launcher shows.
        tracker: where each timed prompt is logged; None for nowhere.
    """
    session, settings = job.session, job.settings
    title = settings.partitioner.name if role == "run" else f"reference ({role})"
    profile = drift_label(job.run.percentages, job.run.drift)
    title = f"{title}, {settings.layout.name}, {profile}: {job.run.seq_len} tokens"
    session.progress.stage(title, settings.warmup + settings.repeats)
    reset_peak_memory(session.device)
    measurement = _Measurement(job, job.prompt_loop(), tracker)
    measurement.warm_up()
    measurement.time_prompts()
    return measurement.result()


@dataclass
class _Measurement:
    """The prompts of one job, as they run."""

    job: PreparedJob
    loop: PromptLoop
    tracker: Tracker | None
    iterations: list[list[IterationTiming]] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)

    def warm_up(self) -> None:
        """Run prompts that are not timed, until they suffice by the time of the first."""
        session, requested = self.job.session, self.job.settings.warmup
        needed = requested
        for done in count(1):
            if done > needed:
                return
            ranks, replan_ms = self._run(WARM_UP)
            self._learn(ranks, replan_ms)
            if done == 1:
                needed = enough_warmup(requested, session.device.type, metrics.latency_ms(ranks))
            if done > needed - requested:  # the display counts the prompts that were asked for
                session.progress.advance()

    def time_prompts(self) -> None:
        """Run and log the prompts that count."""
        repeats = self.job.settings.repeats
        for index in range(repeats):
            plan = self.loop.plan
            ranks, replan_ms = self._run(index)
            self.iterations.append(ranks)
            self.prompts.append(self._settings_of(plan, ranks, replan_ms))
            if self.tracker:
                self.tracker.iteration(index, ranks, self.prompts[-1])
            if index + 1 < repeats:  # the output stays one of the latest plan
                self._learn(ranks, replan_ms)
            self.job.session.progress.advance()

    def result(self) -> Measured:
        """Run all prompts in a row, and return what has been measured."""
        session, communicator = self.job.session, self.job.session.communicator
        communicator.barrier()
        back_to_back_ms = max(communicator.gather(self.loop.back_to_back_ms(self.job.settings.repeats)))
        return Measured(
            iterations=self.iterations,
            prompts=self.prompts,
            back_to_back_ms=back_to_back_ms,
            peak_memory_bytes=communicator.gather(peak_memory_bytes(session.device)),
            plan=self.loop.plan,
            output=self.loop.output,
        )

    def _run(self, prompt: int) -> tuple[list[IterationTiming], float]:
        """Run one prompt. Return the timings of all ranks and the slowest rank's time to replan."""
        self.loop.begin(prompt)
        gathered = self.job.session.communicator.gather((self.loop.run(), self.loop.replan_ms))
        return [timing for timing, _ in gathered], max(replan_ms for _, replan_ms in gathered)

    def _learn(self, ranks: list[IterationTiming], replan_ms: float) -> None:
        self.loop.learn([timing.busy_ms for timing in ranks], replan_ms)

    def _settings_of(self, plan: Plan, ranks: list[IterationTiming], replan_ms: float) -> Prompt:
        """Return what one prompt ran with, and how well that was."""
        job, percentages = self.job, self.job.session.throttle.percentages
        flops = [job.workload.flops(plan, rank) for rank in range(plan.world_size)]
        calibrated = job.drift_speeds.get(tuple(percentages))
        efficiency = None
        if calibrated:
            efficiency = capacity_efficiency(job, metrics.latency_ms(ranks), calibrated)
        return Prompt(
            percentages=percentages,
            tokens=plan.tokens,
            speeds=[
                metrics.tflops(work, timing.busy_ms) if tokens else None
                for work, timing, tokens in zip(flops, ranks, plan.tokens, strict=True)
            ],
            calibrated_speeds=calibrated,
            capacity_efficiency=efficiency,
            replan_ms=replan_ms,
        )


def capacity_efficiency(job: PreparedJob, latency_ms: float, speeds: list[float]) -> float | None:
    """Return `metrics.capacity_efficiency` at the ranks' present percentages.

    Args:
        job: says what the references are.
        latency_ms: the measured latency.
        speeds: the speed of each rank at these percentages, TFLOP/s.
    """
    session, references = job.session, job.references
    percentages = session.throttle.percentages if has_whole_devices(session, job.run) else []
    single_speed = metrics.full_speed(speeds, percentages) or references.single_speed_tflops
    return metrics.capacity_efficiency(latency_ms, speeds, references.single_ms, single_speed)


def enough_warmup(requested: int, device: str, latency_ms: float) -> int:
    """Return how many prompts are not timed.

    On a GPU they last at least WARM_MS together, unless they are very short.

    Args:
        requested: the setting `warmup`; 0 requests none.
        device: cpu or cuda.
        latency_ms: the time of the first prompt.
    """
    if not requested or device == "cpu":
        return requested
    return max(requested, min(ceil(WARM_MS / latency_ms), MOST_WARM))


@contextmanager
def short_collections() -> Iterator[None]:
    """Make the garbage collector skip all objects that exist by now: some 300,000 of imports and models.

    Going through them stops Python for 0.1 s and more, and might do so in the middle of a prompt.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
