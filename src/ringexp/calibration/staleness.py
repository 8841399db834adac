"""Whether stored speeds still hold: one point measured again, briefly, before a run trusts the rest."""

from __future__ import annotations

from collections.abc import Sequence

from ringexp.calibration.measure import WARMUP, Effort
from ringexp.calibration.table import Point, SpeedRow

SPOT_CHECK = Effort(min_samples=3, min_seconds=0.0, max_seconds=0.0, precision=0.0)
"""Three samples, whatever they are."""

BUDGET_MS = 500.0
"""What a spot check should take at most, by the stored times."""


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
    """Off by more than the tolerance and more than twice the spread (IQR / median) of either."""
    return abs(deviation(stored, spot)) > max(tolerance, 2 * stored.spread, 2 * spot.spread)
