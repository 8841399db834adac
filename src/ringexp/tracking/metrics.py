"""Every figure of merit, defined once: its formula and its unit. Console, wandb and CSV read from here.

All times are milliseconds. Lists have one entry per rank unless the name says iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, takewhile
from statistics import median, quantiles
from typing import TYPE_CHECKING, TypeVar

from ringexp.ring.timing import IterationTiming
from ringexp.tracking.results import Adaptation, Prompt

if TYPE_CHECKING:
    import pandas as pd

Figure = TypeVar("Figure", float, "pd.Series")
"""A number, or a column of a table with one number per run."""


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
    """Return the time that one rank computes blocks and merges."""
    return sum(hop.compute_ms for hop in timing.hops)


def wait_ms(timing: IterationTiming) -> float:
    """Return the communication that is not hidden: the time that one rank waits for keys/values."""
    return sum(hop.wait_ms for hop in timing.hops)


def spread_ms(values: Sequence[float]) -> float:
    """Return the interquartile range; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low


def efficiency(busy: Sequence[float], latency: float) -> float:
    """Return the share of the ranks' time spent computing: sum(busy) / (P x latency)."""
    return sum(busy) / (len(busy) * latency)


def slowdown(latency: float, homogeneous: float | None) -> float | None:
    """Return latency / latency of the same ring with all ranks at full speed and an even split."""
    return None if homogeneous is None else latency / homogeneous


def speedup_over_even(latency: float, even: float | None) -> float | None:
    """Return latency of an even split on the same throttled ranks and layout / latency."""
    return None if even is None else even / latency


def speedup(latency: Figure, base: Figure) -> Figure:
    """Return how many times faster than `base` something is: base / latency.

    Args:
        latency: a number, or a column of a table with one number per run.
        base: the same, of what it is compared with.
    """
    return base / latency  # type: ignore[return-value]


def prediction_error(predicted: Figure, latency: Figure) -> Figure:
    """Return predicted latency / measured latency - 1. Above 0 the plan expected more time.

    Args:
        predicted: a number, or a column of a table with one number per run.
        latency: the same, as measured.
    """
    return predicted / latency - 1  # type: ignore[return-value]


def absolute_errors(errors: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 95th percentile of the errors' sizes."""
    sizes = [abs(error) for error in errors]
    return median(sizes), quantiles(sizes, n=20, method="inclusive")[-1] if len(sizes) > 1 else sizes[0]


def capacity_efficiency(
    latency: float, speeds: Sequence[float], single: float | None, single_speed: float | None
) -> float | None:
    """Return capacity-ideal time / latency, the headline figure.

    Capacity-ideal time = T(one full-speed device alone) x its speed / sum(speeds). Its speed is that of the
    ranks that are at full speed, or as measured alone if there are none.
    """
    if single is None or single_speed is None:
        return None
    return single * single_speed / sum(speeds) / latency


def full_speed(speeds: Sequence[float], percentages: Sequence[float]) -> float | None:
    """Return the mean speed of the ranks at 100 %. These were measured beside the others."""
    full = [speed for speed, percentage in zip(speeds, percentages, strict=False) if percentage == 100]
    return sum(full) / len(full) if full else None


def tflops(flops: float, latency: float) -> float:
    """Return the matmul TFLOP/s of all ranks together."""
    return flops / latency / 1e9


def with_last_plan(prompts: Sequence[Prompt]) -> int:
    """Count the last iterations that ran with the last plan."""
    return sum(1 for _ in takewhile(lambda prompt: prompt.tokens == prompts[-1].tokens, reversed(prompts)))


def adaptation(prompts: Sequence[Prompt], latencies: Sequence[float]) -> Adaptation:
    """Sum up the iterations of a run whose speeds or plans change."""
    replans = sum(before.tokens != prompt.tokens for before, prompt in pairwise(prompts))
    replan_ms = sum(prompt.replan_ms for prompt in prompts)
    ideal_and_measured = [
        (prompt.capacity_efficiency * latency, latency)
        for prompt, latency in zip(prompts, latencies, strict=True)
        if prompt.capacity_efficiency is not None
    ]
    efficiency = (
        sum(ideal for ideal, _ in ideal_and_measured) / sum(latencies)
        if len(ideal_and_measured) == len(latencies)
        else None
    )
    return Adaptation(replans, replan_ms, sum(latencies) + replan_ms, efficiency, list(prompts))


def per_rank_medians(iterations: Sequence[Sequence[IterationTiming]]) -> dict[str, list[float]]:
    """Return busy_ms, its parts, wait_ms, comm_ms and idle_ms as medians over iterations, one per rank."""
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
    """Return (linear_ms, attention_ms, wait_ms) of each layer, on one rank.

    linear_ms is the time before the layer's attention: its own projections, and the end of the layer before.
    A last entry has the time after the last attention, with the model's head.
    """
    layers = [(linear, 0.0, 0.0) for linear in timing.linear_ms]
    for hop in timing.hops:
        linear, attention, wait = layers[hop.layer]
        layers[hop.layer] = (linear, attention + hop.compute_ms, wait + hop.wait_ms)
    return layers
