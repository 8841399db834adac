"""The speed model of partitioner `lut`: interpolation between measured speeds.

    LookupTable(rows).speed(16384, 50)    # TFLOP/s at 16,384 tokens and 50 %

Speeds are positive and finite for lengths of at least 1 token and percentages in (0, 100].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from ringexp.calibration.rows import SpeedRow, check_query, rows_of_one_device
from ringexp.errors import UserError

EXTRAPOLATION = 0.05
"""Up to this relative distance above the largest measured percentage, speeds are those at that percentage."""

MIN_PERCENTAGE = 0.01
"""Smaller percentages count as this one, since the curve ends in speed 0 at 0 %."""

Curve = Callable[[float], float]
CurveThrough = Callable[[Sequence[float], Sequence[float]], Curve]
"""Returns the curve through points, given by their coordinates x, ascending, and y."""


def _pchip(x: Sequence[float], y: Sequence[float]) -> Curve:
    from scipy.interpolate import PchipInterpolator

    curve = PchipInterpolator(x, y)
    return lambda at: float(curve(at))


def _linear(x: Sequence[float], y: Sequence[float]) -> Curve:
    from numpy import interp

    return lambda at: float(interp(at, x, y))


_CURVES: dict[str, CurveThrough] = {"pchip": _pchip, "linear": _linear}


class LookupTable:
    """Interpolate between measured speeds by PCHIP (Fritsch & Butland 1984) or straight lines.

    There is one curve over log(length) per measured percentage, constant beyond the measured ends, and then a
    curve over the percentages with speed 0 at 0 %. Measured points are returned exactly. Between percentages,
    isotonic regression makes the speeds non-decreasing first, so that noise cannot make a larger percentage
    slower.
    """

    def __init__(self, rows: Iterable[SpeedRow], interpolation: str = "pchip") -> None:
        """Build the curves.

        Args:
            rows: rows of one device and one shape, at most one per length and percentage.
            interpolation: pchip or linear, between lengths and between percentages.

        Raises:
            UserError: for no rows, for rows of several devices or shapes, and for two rows at one point.
        """
        self._between = _CURVES[interpolation]
        measured: dict[float, dict[int, float]] = {}
        for row in sorted(rows_of_one_device(rows), key=lambda row: (row.percentage, row.length)):
            speeds = measured.setdefault(row.percentage, {})
            if row.length in speeds:
                raise UserError(
                    f"two calibration rows for {row.shape} at {row.percentage:g} % and {row.length} tokens; "
                    f"give the rows of one throttle, with the same ranks on one device"
                )
            speeds[row.length] = row.speed_tflops
        self._percentages = list(measured)
        self._curves = {
            percentage: _LengthCurve(speeds, self._between) for percentage, speeds in measured.items()
        }
        at_knots = [self._speeds_at(length) for curve in self._curves.values() for length in curve.measured]
        self._monotone = all(speeds == sorted(speeds) for speeds in at_knots)

    def speed(self, length: int, percentage: float) -> float:
        """Return the speed at a length and a percentage, TFLOP/s.

        Raises:
            UserError: for a percentage that is more than EXTRAPOLATION above the largest measured one.
        """
        from scipy.optimize import isotonic_regression

        check_query(length, percentage)
        largest = self._percentages[-1]
        if percentage > largest * (1 + EXTRAPOLATION):
            measured = ", ".join(f"{value:g}" for value in self._percentages)
            raise UserError(
                f"percentage={percentage:g} is above all in the calibration table ({measured}); "
                f"calibrate at {percentage:g} % or more: calibration.mode=auto measures what is missing"
            )
        percentage = min(percentage, largest)
        curve = self._curves.get(percentage)
        if curve and (length in curve.measured or not self._monotone):
            return curve(length)
        # Curves in order at measured lengths may still cross between them, so regress here too.
        speeds = isotonic_regression(self._speeds_at(length)).x
        between = self._between([0.0, *self._percentages], [0.0, *speeds])
        return between(max(percentage, min(MIN_PERCENTAGE, self._percentages[0])))

    def _speeds_at(self, length: int) -> list[float]:
        return [curve(length) for curve in self._curves.values()]


class _LengthCurve:
    """The speed over log(length) at one percentage, constant beyond the measured ends."""

    def __init__(self, measured: dict[int, float], between: CurveThrough) -> None:
        """Fit the curve.

        Args:
            measured: TFLOP/s by length, in ascending order of length.
            between: returns the curve through points.
        """
        self.measured = measured
        self._shortest, self._longest = min(measured), max(measured)
        if len(measured) > 1:
            logs = [math.log(length) for length in measured]
            self._between = between(logs, list(measured.values()))

    def __call__(self, length: int) -> float:
        length = min(max(length, self._shortest), self._longest)
        if length in self.measured:
            return self.measured[length]
        return self._between(math.log(length))
