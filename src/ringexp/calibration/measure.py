"""Timing one piece of work on a rank, fairly to the ranks it shares a device with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

WARMUP = 1
RECENT = 200
"""So many of the latest samples are looked at to decide on stopping: looking must take no time."""


@dataclass(frozen=True)
class SpeedSample:
    """Median time of the piece, ms; its interquartile range relative to the median; TFLOP/s at the median."""

    time_ms: float
    spread: float
    samples: int
    speed_tflops: float


@dataclass(frozen=True)
class StoppingRule:
    """When a measurement is over: after `min_seconds`, in which a device that meets its power limit shows it,
    as soon as two of three hold: `min_samples` are taken, the median is known to `precision`, `max_seconds`
    have passed. So two samples do where each is long and they agree."""

    min_samples: int
    min_seconds: float
    max_seconds: float
    precision: float

    def is_enough(self, times: Sequence[float], seconds: float) -> bool:
        """Whether these samples, taken in so many seconds, will do."""
        enough, late = len(times) >= self.min_samples, seconds >= self.max_seconds
        known = len(times) >= min(2, self.min_samples) and median_error(times[-RECENT:]) <= self.precision
        return seconds >= self.min_seconds and enough + late + known >= 2


def median_error(times: Sequence[float]) -> float:
    """How far the median may be from the true one, relative to it: the 95 % confidence interval by ranks.

    For any distribution the interval is between the samples of rank n/2 -+ .98 sqrt(n), by the normal
    approximation to the binomial (Conover 1999, section 3.2); below six samples that is all of them.
    """
    ordered = sorted(times)
    outside = max(int(len(ordered) / 2 - 0.98 * len(ordered) ** 0.5), 0)
    low, middle, high = ordered[outside], median(ordered), ordered[-1 - outside]
    return max(high - middle, middle - low) / middle


def calibration_lengths(seq_len: int, for_fit: bool) -> list[int]:
    """Lengths to measure for a run of `seq_len`: the powers of two around it, so that runs share rows.

    A regression needs a range: `for_fit` adds a half and a quarter of the length.
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
    effort: StoppingRule,
    start_together: Callable[[], None],
    finish_together: Callable[[], bool],
    warm: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> SpeedSample:
    """Speed of a piece of `flops` FLOPs; `timed()` runs it once and returns milliseconds.

    warm: it has been run before; else it is, untimed, here. Ranks that share a device slow each other down,
    so all measure at once: after `start_together()` each takes what `effort` says, then keeps working until
    `finish_together()` is true.
    """
    for _ in range(0 if warm else WARMUP):
        timed()
    start_together()
    times: list[float] = []
    began = clock()
    while not effort.is_enough(times, clock() - began):
        times.append(timed())
    while not finish_together():
        timed()
    middle = median(times)
    low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else (middle, middle, middle)
    return SpeedSample(middle, (high - low) / middle, len(times), flops / middle / 1e9)
