"""Timing one piece of work on a rank, fairly to the ranks it shares a device with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

WARMUP = 2


@dataclass(frozen=True)
class SpeedSample:
    """Median time of the piece, ms; its interquartile range relative to the median; TFLOP/s at the median."""

    time_ms: float
    spread: float
    samples: int
    speed_tflops: float


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
    min_seconds: float,
    min_samples: int,
    warmup: int = WARMUP,
    start_together: Callable[[], None],
    finish_together: Callable[[], bool],
) -> SpeedSample:
    """Speed of a piece of `flops` FLOPs; `timed()` runs it once and returns milliseconds.

    Ranks that share a device slow each other down, so all measure at once: after `start_together()` each
    takes `min_samples` over at least `min_seconds`, then keeps working until `finish_together()` is true.
    """
    for _ in range(warmup):
        timed()
    start_together()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < min_samples or time.perf_counter() - began < min_seconds:
        times.append(timed())
    while not finish_together():
        timed()
    middle = median(times)
    low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else (middle, middle, middle)
    return SpeedSample(middle, (high - low) / middle, len(times), flops / middle / 1e9)
