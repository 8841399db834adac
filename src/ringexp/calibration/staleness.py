"""Whether stored speeds still hold: one point measured again, briefly, before a run trusts the rest.

And whether they hold for all devices of a name, which share rows but are not always equally fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from statistics import median

from ringexp.calibration.measure import WARMUP, StoppingRule
from ringexp.calibration.rows import Point, SpeedRow

SPOT_CHECK = StoppingRule(min_samples=3, min_seconds=0.0, max_seconds=0.0, precision=0.0)
"""Three samples, whatever they are."""

BUDGET_MS = 500.0
"""What a spot check should take at most, by the stored times."""

UNLIKE = 0.03
"""Ranks of one kind of device that differ by more are named: an even split of two loses half of it."""


def spot_point(rows: Sequence[Sequence[SpeedRow]], seq_len: int) -> Point | None:
    """The point to measure again: one that all ranks have, nearest to the run.

    rows: each rank's stored rows, at its own percentage. Of the nearest length it is the point with the most
    tokens that fits the budget, else the quickest. None if there is no point that all have.
    """
    times = [{row.point: row.time_ms for row in mine} for mine in rows]
    shared = set.intersection(*(set(mine) for mine in times))
    if not shared:
        return None
    nearest = min((length for length, *_ in shared), key=lambda length: (abs(length - seq_len), length))
    needs_ms = {
        point: (WARMUP + SPOT_CHECK.min_samples) * max(mine[point] for mine in times)
        for point in shared
        if point[0] == nearest
    }
    fitting = [point for point, ms in needs_ms.items() if ms <= BUDGET_MS]
    return max(fitting) if fitting else min(needs_ms, key=lambda point: needs_ms[point])


def deviation(stored: SpeedRow, spot: SpeedRow) -> float:
    """How much longer the point takes now, relative to what is stored; negative: it is quicker."""
    return spot.time_ms / stored.time_ms - 1


def is_stale(stored: SpeedRow, spot: SpeedRow, tolerance: float) -> bool:
    """Tell whether a stored time is off, by the rule of `is_off`."""
    return is_off(stored.time_ms, spot.time_ms, stored.spread, spot.spread, tolerance)


def is_off(
    stored_ms: float, spot_ms: float, stored_spread: float, spot_spread: float, tolerance: float
) -> bool:
    """Tell whether two times differ by more than the tolerance and more than twice the spread of either.

    Args:
        stored_ms: the time that is stored.
        spot_ms: the time that was just measured.
        stored_spread: interquartile range over median of what is stored.
        spot_spread: the same of what was just measured.
        tolerance: the difference, relative to the stored time, that never counts.
    """
    return abs(spot_ms / stored_ms - 1) > max(tolerance, 2 * stored_spread, 2 * spot_spread)


def find_unequal_ranks(measured: Sequence[Sequence[SpeedRow]]) -> tuple[int, int, float] | None:
    """Of ranks that share rows the slowest and the fastest, and how much longer the former takes, relatively.

    measured: each rank's rows of the same points, taken at the same time. None if no two differ by more than
    UNLIKE and twice the spread, in the median over the points.
    """
    found: list[tuple[float, int, int]] = []
    for slow, fast in permutations(range(len(measured)), 2):
        pairs = list(zip(measured[slow], measured[fast], strict=True))
        if pairs and all(one.key == other.key for one, other in pairs):
            longer = median(deviation(other, one) for one, other in pairs)
            noise = median(2 * max(one.spread, other.spread) for one, other in pairs)
            found += [(longer, slow, fast)] if longer > max(UNLIKE, noise) else []
    if not found:
        return None
    longer, slow, fast = max(found)
    return slow, fast, longer
