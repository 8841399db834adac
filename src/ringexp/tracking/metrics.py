"""Every figure of merit, defined once: its formula and its unit. Console, wandb and CSV read from here.

All times are milliseconds. Lists have one entry a rank unless the name says iterations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from statistics import median, quantiles
from typing import Any

from ringexp.ring.timing import IterationTiming


def latency_ms(ranks: Sequence[IterationTiming]) -> float:
    """Time of one iteration: the slowest rank's, from a common start."""
    return max(timing.latency_ms for timing in ranks)


def idle_ms(ranks: Sequence[IterationTiming], rank: int) -> float:
    """Time of one iteration in which `rank` does not compute: latency - busy."""
    return latency_ms(ranks) - ranks[rank].busy_ms


def comm_ms(timing: IterationTiming) -> float:
    """Sum over hops of the time in flight on one rank, hidden behind compute or not."""
    return sum(hop.transfer_ms for hop in timing.hops)


def linear_ms(timing: IterationTiming) -> float:
    """Time one rank computes outside attention; with `attention_ms` it makes up busy."""
    return sum(timing.linear_ms)


def attention_ms(timing: IterationTiming) -> float:
    """Time one rank computes blocks and merges."""
    return sum(hop.compute_ms for hop in timing.hops)


def wait_ms(timing: IterationTiming) -> float:
    """Communication that is not hidden: time one rank stands still until keys/values are there."""
    return sum(hop.wait_ms for hop in timing.hops)


def spread_ms(values: Sequence[float]) -> float:
    """Interquartile range; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low


def efficiency(busy: Sequence[float], latency: float) -> float:
    """Part of the ranks' time spent computing: sum(busy) / (P x latency)."""
    return sum(busy) / (len(busy) * latency)


def slowdown(latency: float, homogeneous: float | None) -> float | None:
    """Latency over that of the same ring with all ranks at full speed and an even split."""
    return None if homogeneous is None else latency / homogeneous


def speedup_over_even(latency: float, even: float | None) -> float | None:
    """Latency of an even split on the same throttled ranks and layout, over latency."""
    return None if even is None else even / latency


def speedup(latency: Any, base: Any) -> Any:
    """How many times faster than `base`: base / latency, of numbers or of columns of a table."""
    return base / latency


def prediction_error(predicted: Any, latency: Any) -> Any:
    """Predicted latency / measured latency - 1, of numbers or of columns: above 0, the plan expected more."""
    return predicted / latency - 1


def absolute_errors(errors: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile of the errors' sizes."""
    sizes = [abs(error) for error in errors]
    return median(sizes), quantiles(sizes, n=20, method="inclusive")[-1] if len(sizes) > 1 else sizes[0]


def capacity_efficiency(
    latency: float, speeds: Sequence[float], single: float | None, single_speed: float | None
) -> float | None:
    """Capacity-ideal time / latency; the headline figure.

    Capacity-ideal time = T(one full-speed device alone) x its speed / sum(speeds). Its speed is that of the
    ranks that are at full speed, or as measured alone if there are none.
    """
    if single is None or single_speed is None:
        return None
    return single * single_speed / sum(speeds) / latency


def full_speed(speeds: Sequence[float], percentages: Sequence[float]) -> float | None:
    """Mean speed of the ranks that are at 100 %: measured beside the others, it compares best with theirs."""
    full = [speed for speed, percentage in zip(speeds, percentages, strict=False) if percentage == 100]
    return sum(full) / len(full) if full else None


def tflops(flops: float, latency: float) -> float:
    """Matmul TFLOP/s of all ranks together."""
    return flops / latency / 1e9


SPREAD_BOUND = 1e-5
"""An exact output in float32 differs by no more than this part of the reference's spread."""
TOKEN_BOUND = 1e-4
"""Each token of an exact output in float32 differs by no more than this part of its size."""
PRECISION_SLACK = 1.5
"""An exact output in a lower precision is at most this much further from float32 than one process is."""


def error_bounds(spread: float, single_max_abs: float, single_token: float) -> tuple[float, float]:
    """Return the largest `error_max_abs` and the largest `error_token` that an exact output may have.

    Args:
        spread: largest minus smallest value of one process in float32.
        single_max_abs: the largest difference of one process in the run's precision from float32.
        single_token: the same for the worst token, relative to its size.
    """
    of_output = max(SPREAD_BOUND * spread, PRECISION_SLACK * single_max_abs)
    return of_output, max(TOKEN_BOUND, PRECISION_SLACK * single_token)


@dataclass(frozen=True)
class Accuracy:
    """The distance of the output from that of one process computing in float32 on the same inputs.

    error_token: the worst token's distance relative to its size, by Euclidean norms. Outputs of early tokens
    are large, so the largest difference tends to be theirs. error_single_*: the same for one process in the
    run's precision. reference_spread: largest minus smallest value in float32. not_finite: how many values of
    the output are NaN or infinite; single_*, reference_*: of one process in that precision and in float32.
    """

    error_max_abs: float
    error_single_max_abs: float
    error_token: float
    error_single_token: float
    reference_spread: float
    not_finite: int = 0
    single_not_finite: int = 0
    reference_not_finite: int = 0

    @property
    def exact(self) -> bool:
        """Tell if the output is right: all is finite, and both errors are within `error_bounds`."""
        of_single = self.reference_spread, self.error_single_max_abs, self.error_single_token
        if self.not_finite or self.single_not_finite or self.reference_not_finite:
            return False
        if not all(map(math.isfinite, of_single)):  # what is infinite or NaN bounds nothing
            return False
        of_output, of_token = error_bounds(*of_single)
        return self.error_max_abs <= of_output and self.error_token <= of_token  # False for NaN

    @property
    def why_inexact(self) -> str | None:
        """Say in one line why the output is not exact, and if the ring is at fault; None if it is exact."""
        if self.exact:
            return None
        if self.reference_not_finite:
            return (
                f"one process in float32 computes {self.reference_not_finite} NaN or infinite values itself, "
                "so nothing can be checked: the model, its weights or its inputs are at fault, not the ring"
            )
        if self.single_not_finite:
            return (
                f"one process in this precision computes {self.single_not_finite} NaN or infinite values "
                "itself, and none in float32: this dtype's range is too small for the model, and the ring is "
                "not at fault; use another model.dtype"
            )
        if self.not_finite:
            return (
                f"{self.not_finite} values of the output are NaN or infinite, and none of one process: "
                "do not use it"
            )
        return (
            f"the output is off by {self.error_max_abs:.3g} from one process in float32, a token by "
            f"{self.error_token:.1%} of its size, but one process in this precision only by "
            f"{self.error_single_max_abs:.3g} and {self.error_single_token:.1%}: do not use it"
        )


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding after prefill, with the cache where prefill left it.

    tokens: new ones of each of `sequences`. tokens_per_s: of all sequences together. speedup: one full-speed
    device's ms_per_token over this one. kept: how many of the new tokens but the last each rank keeps.
    cache_bytes: keys and values of prompt and new tokens, a rank. agreeing: tokens that one process would
    have chosen too, of `tokens` x `sequences`; None if not checked. longest_context: tokens that would fit
    these ranks, split as they are, with their caches, by `planning.memory`; longest_context_single: the rank
    with the most memory alone. None without a limit. texts: the continuations of real prompts.
    """

    tokens: int
    sequences: int
    ms_per_token: float
    tokens_per_s: float
    speedup: float | None
    kept: list[int]
    cache_bytes: list[int]
    agreeing: int | None
    longest_context: int | None
    longest_context_single: int | None
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Prompt:
    """What one timed iteration ran with; lists have one entry a rank.

    speeds: TFLOP/s while it computed, by its busy time; None without tokens. calibrated_speeds: measured
    before the run at these percentages, None where they were not. capacity_efficiency: by those. replan_ms:
    what the slowest rank took to change to this plan, or to capture its graph; 0: it had both already.
    """

    percentages: list[float]
    tokens: list[int]
    speeds: list[float | None]
    calibrated_speeds: list[float] | None
    capacity_efficiency: float | None
    replan_ms: float = 0.0


@dataclass(frozen=True)
class Adaptation:
    """A run whose speeds or plans change: all its timed iterations.

    replans: plans that took the place of another. replan_ms: their cost together. total_ms: latencies and
    that. capacity_efficiency: capacity-ideal time of all prompts / their latencies.
    """

    replans: int
    replan_ms: float
    total_ms: float
    capacity_efficiency: float | None
    prompts: list[Prompt]


def with_last_plan(prompts: Sequence[Prompt]) -> int:
    """How many of the last iterations ran with the last plan."""
    return sum(1 for _ in takewhile(lambda prompt: prompt.tokens == prompts[-1].tokens, reversed(prompts)))


def adaptation(prompts: Sequence[Prompt], latencies: Sequence[float]) -> Adaptation:
    """The iterations of a run taken together."""
    replans = sum(before.tokens != prompt.tokens for before, prompt in pairwise(prompts))
    replan_ms = sum(prompt.replan_ms for prompt in prompts)
    known = [
        (prompt.capacity_efficiency * latency, latency)
        for prompt, latency in zip(prompts, latencies, strict=True)
        if prompt.capacity_efficiency is not None
    ]
    efficiency = sum(ideal for ideal, _ in known) / sum(latencies) if len(known) == len(latencies) else None
    return Adaptation(replans, replan_ms, sum(latencies) + replan_ms, efficiency, list(prompts))


@dataclass(frozen=True)
class References:
    """What slowdown, speedup and capacity efficiency are measured against; None where not measured."""

    homogeneous_ms: float | None = None
    even_ms: float | None = None
    single_ms: float | None = None
    single_back_to_back_ms: float | None = None
    single_speed_tflops: float | None = None
    single_decode_ms: float | None = None


@dataclass(frozen=True)
class RunResult:
    """One run's figures, as results.json, wandb and the tables have them; see docs/metrics.md."""

    latency_ms_median: float
    latency_ms_spread: float
    latency_ms_iterations: list[float]
    settled_iterations: int
    latency_ms_back_to_back: float
    hop_latency_ms: float | None
    hop_gbps: float | None
    latency_ms_predicted: float | None
    time_to_first_token_ms: float | None
    tokens: list[int]
    kv_tokens: list[int]
    shares: list[float]
    speeds: list[float]
    throttle: str
    throttle_emulated: bool
    throttle_achieved: list[float | None]
    sm_counts: list[int | None]
    cublas_sms: list[int | None]
    slowdown: float | None
    efficiency: float
    speedup_over_even: float | None
    capacity_efficiency: float | None
    busy_ms: list[float]
    linear_ms: list[float]
    attention_ms: list[float]
    wait_ms: list[float]
    comm_ms: list[float]
    idle_ms: list[float]
    tflops: float
    peak_memory_bytes: list[int]
    error_max_abs: float | None
    error_single_max_abs: float | None
    error_token: float | None
    error_single_token: float | None
    exact: bool | None
    kernel: str
    transport: str
    plan: list[str]
    costs: list[dict[str, Any]]
    hop: dict[str, Any] | None
    num_units: int
    decode: Decoding | None = None
    adaptation: Adaptation | None = None
    references: dict[str, float | None] = field(default_factory=dict)
    speed_model: dict[str, Any] = field(default_factory=dict)
    missing_references: list[str] = field(default_factory=list)
    why_inexact: str | None = None
    error_checkpoint: float | None = None


def per_rank_medians(iterations: Sequence[Sequence[IterationTiming]]) -> dict[str, list[float]]:
    """busy_ms, its parts, wait_ms, comm_ms and idle_ms: medians over the iterations, one a rank."""
    figures = {
        "busy_ms": lambda ranks, rank: ranks[rank].busy_ms,
        "linear_ms": lambda ranks, rank: linear_ms(ranks[rank]),
        "attention_ms": lambda ranks, rank: attention_ms(ranks[rank]),
        "wait_ms": lambda ranks, rank: wait_ms(ranks[rank]),
        "comm_ms": lambda ranks, rank: comm_ms(ranks[rank]),
        "idle_ms": idle_ms,
    }
    ranks = range(len(iterations[0]))
    return {
        name: [median(figure(iteration, rank) for iteration in iterations) for rank in ranks]
        for name, figure in figures.items()
    }


def by_layer(timing: IterationTiming) -> list[tuple[float, float, float]]:
    """(linear_ms, attention_ms, wait_ms) of each layer, on one rank.

    linear_ms is what comes before the layer's attention: its own projections, and what the layer before still
    had to do. A last entry has what follows the last attention, the model's head too.
    """
    layers = [(linear, 0.0, 0.0) for linear in timing.linear_ms]
    for hop in timing.hops:
        linear, attention, wait = layers[hop.layer]
        layers[hop.layer] = (linear, attention + hop.compute_ms, wait + hop.wait_ms)
    return layers
