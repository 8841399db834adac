"""Check stored speeds: measure one point again before a run relies on the others.

Also check that devices of one name, which share rows, are equally fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from statistics import median

from ringexp.calibration.measure import WARMUP, StoppingRule
from ringexp.calibration.rows import Point, SpeedRow

SPOT_CHECK = StoppingRule(min_samples=3, min_seconds=0.0, max_seconds=0.0, precision=0.0)
"""The rule of a spot check: three samples."""

BUDGET_MS = 500.0
"""The time that a spot check should not exceed, by the stored times."""

UNEQUAL = 0.03
"""Ranks on devices of one name that differ by more are reported. An even split of two loses half of this."""


def spot_point(rows: Sequence[Sequence[SpeedRow]], seq_len: int) -> Point | None:
    """Return the point to measure again.

    Of the points that all ranks have, those of the length nearest to the run count. Of these it is the point
    with the most tokens that fits the budget, else the quickest.

    Args:
        rows: per rank, its stored rows at its own percentage.
        seq_len: tokens of the run's prompt.

    Returns:
        The point; None if no point is stored for all ranks.
    """
    times = [{row.point: row.time_ms for row in own_rows} for own_rows in rows]
    shared = set.intersection(*(set(own_times) for own_times in times))
    if not shared:
        return None
    nearest = min((length for length, *_ in shared), key=lambda length: (abs(length - seq_len), length))
    needs_ms = {
        point: (WARMUP + SPOT_CHECK.min_samples) * max(own_times[point] for own_times in times)
        for point in shared
        if point[0] == nearest
    }
    fitting = [point for point, ms in needs_ms.items() if ms <= BUDGET_MS]
    return max(fitting) if fitting else min(needs_ms, key=lambda point: needs_ms[point])


def deviation(stored: SpeedRow, spot: SpeedRow) -> float:
    """Return the change of a point's time relative to the stored one; negative if it is quicker now."""
    return spot.time_ms / stored.time_ms - 1


def is_stale(stored: SpeedRow, spot: SpeedRow, tolerance: float) -> bool:
    """Return whether a stored time is no longer right, by the rule of `is_off`."""
    return is_off(stored.time_ms, spot.time_ms, stored.spread, spot.spread, tolerance)


def is_off(
    stored_ms: float, spot_ms: float, stored_spread: float, spot_spread: float, tolerance: float
) -> bool:
    """Return whether two times differ by more than the tolerance and more than twice the spread of either.

    Args:
        stored_ms: the stored time.
        spot_ms: the new time.
        stored_spread: interquartile range over median of the stored measurement.
        spot_spread: the same of the new measurement.
        tolerance: the difference, relative to the stored time, that never counts.
    """
    return abs(spot_ms / stored_ms - 1) > max(tolerance, 2 * stored_spread, 2 * spot_spread)


def find_unequal_ranks(measured: Sequence[Sequence[SpeedRow]]) -> tuple[int, int, float] | None:
    """Compare ranks that share calibration rows.

    Two ranks differ significantly if the median over the points differs by more than UNEQUAL and twice the
    spread.

    Args:
        measured: per rank, rows of the same points that were measured at the same time.

    Returns:
        (slowest rank, fastest rank, relative slowdown), or None if no two ranks differ significantly.
    """
    unequal: list[tuple[float, int, int]] = []
    for slow, fast in permutations(range(len(measured)), 2):
        pairs = list(zip(measured[slow], measured[fast], strict=True))
        if pairs and all(one.key == other.key for one, other in pairs):
            longer = median(deviation(other, one) for one, other in pairs)
            noise = median(2 * max(one.spread, other.spread) for one, other in pairs)
            unequal += [(longer, slow, fast)] if longer > max(UNEQUAL, noise) else []
    if not unequal:
        return None
    longer, slow, fast = max(unequal)
    return slow, fast, longer
