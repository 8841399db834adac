"""Time one piece of work on this rank, while the ranks that share its device do the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

WARMUP = 1
"""Runs before the timed ones."""

RECENT = 200
"""The number of latest samples that decide on stopping, so that deciding takes little time."""


@dataclass(frozen=True)
class SpeedSample:
    """The result of a measurement.

    Attributes:
        time_ms: the median time.
        spread: the interquartile range of the times, divided by the median.
        samples: the number of times.
        speed_tflops: TFLOP/s at the median.
    """

    time_ms: float
    spread: float
    samples: int
    speed_tflops: float


@dataclass(frozen=True)
class StoppingRule:
    """The rule that ends a measurement.

    It ends after `min_seconds`, as soon as two of the other three limits are met. So two samples suffice if
    they are long and agree.

    Attributes:
        min_samples: the number of samples to take.
        min_seconds: the shortest time, in which a device reaches its power limit if it has one.
        max_seconds: the longest time.
        precision: the relative error of the median to reach, at 95 % confidence.
    """

    min_samples: int
    min_seconds: float
    max_seconds: float
    precision: float

    def is_enough(self, times: Sequence[float], seconds: float) -> bool:
        """Return whether these samples, taken in `seconds`, are enough."""
        many, late = len(times) >= self.min_samples, seconds >= self.max_seconds
        precise = len(times) >= min(2, self.min_samples) and median_error(times[-RECENT:]) <= self.precision
        return seconds >= self.min_seconds and many + late + precise >= 2


def median_error(times: Sequence[float]) -> float:
    """Return the largest relative distance of the median from the true one, at 95 % confidence.

    For any distribution the confidence interval lies between the n/2 -+ 0.98 sqrt(n) smallest samples, by the
    normal approximation to the binomial (Conover 1999, section 3.2). Below six samples it spans all of them.
    """
    ordered = sorted(times)
    outside = max(int(len(ordered) / 2 - 0.98 * len(ordered) ** 0.5), 0)
    low, middle, high = ordered[outside], median(ordered), ordered[-1 - outside]
    return max(high - middle, middle - low) / middle


def calibration_lengths(seq_len: int, for_fit: bool) -> list[int]:
    """Return the lengths to measure for a prompt of `seq_len` tokens.

    They are the powers of two around it, so that runs of similar lengths share rows. `for_fit` adds a half
    and a quarter of the length, since a regression needs a range.
    """
    low = 1 << max(seq_len.bit_length() - 1, 4)
    lengths = {low} if low >= seq_len else {low, 2 * low}
    if for_fit:
        lengths |= {max(low // 2, 16), max(low // 4, 16)}
    return sorted(lengths)


def measure_speed(
    timed: Callable[[], float],
    flops: float,
    *,
    rule: StoppingRule,
    start_together: Callable[[], None],
    finish_together: Callable[[], bool],
    warm: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> SpeedSample:
    """Measure the speed of a piece of work. All ranks call this together.

    Ranks that share a device slow each other down, so all measure at the same time. A rank that has finished
    goes on working until all have.

    Args:
        timed: runs the piece once and returns its time in ms.
        flops: FLOPs of the piece.
        rule: ends the measurement.
        start_together: returns once all ranks have called it.
        finish_together: returns whether all ranks have taken their samples.
        warm: whether the piece has been run before; else it is run once without being timed.
        clock: returns seconds.
    """
    for _ in range(0 if warm else WARMUP):
        timed()
    start_together()
    times: list[float] = []
    began = clock()
    while not rule.is_enough(times, clock() - began):
        times.append(timed())
    while not finish_together():
        timed()
    middle = median(times)
    low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else (middle, middle, middle)
    return SpeedSample(middle, (high - low) / middle, len(times), flops / middle / 1e9)
