"""Speed models: from the rows of a calibration table to the speed at any length and percentage.

    LookupTable(rows).speed(16384, 50)        # interpolates between what was measured (partitioner lut)
    FormulaModel.fit(rows).speed(16384, 50)   # degree-2 regression (partitioner formula)

Both answer in TFLOP/s, positive and finite, for lengths >= 1 token and percentages in (0, 100].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ringexp.calibration.rows import SpeedRow
from ringexp.errors import UserError

EXTRAPOLATION = 0.05
"""How far above the largest measured percentage, relative to it, a lookup still takes that one's speed."""

MIN_PERCENTAGE = 0.01
"""A lookup takes smaller percentages for this one: the curve ends in speed 0 at 0 %."""

FLOOR_FRACTION = 0.05
"""A formula never answers below this fraction of the smallest measured speed per percent x percentage."""


class LookupTable:
    """Monotone interpolation (PCHIP: Fritsch & Butland 1984) between measured speeds.

    For each measured percentage a curve over log(length), constant beyond the measured ends; then a curve
    over the percentages, with speed 0 at 0 %. Measured points are returned exactly. Between percentages the
    speeds are first made non-decreasing by isotonic regression, so noise cannot make a larger percentage
    slower; at a measured percentage noise stays as it was measured.

    Raises UserError for no rows, and for rows of several devices or shapes, or two at one point.
    """

    def __init__(self, rows: Iterable[SpeedRow]) -> None:
        measured: dict[float, dict[int, float]] = {}
        for row in sorted(_of_one_device(rows), key=lambda row: (row.percentage, row.length)):
            speeds = measured.setdefault(row.percentage, {})
            if row.length in speeds:
                raise UserError(
                    f"two calibration rows for {row.shape} at {row.percentage:g} % and {row.length} tokens; "
                    f"give the rows of one throttle, with the same ranks on one device"
                )
            speeds[row.length] = row.speed_tflops
        self._percentages = list(measured)
        self._curves = {percentage: _LengthCurve(speeds) for percentage, speeds in measured.items()}
        at_knots = [self._speeds_at(length) for curve in self._curves.values() for length in curve.measured]
        self._monotone = all(speeds == sorted(speeds) for speeds in at_knots)

    def speed(self, length: int, percentage: float) -> float:
        """TFLOP/s at `length` tokens and `percentage`.

        Raises UserError for a percentage more than EXTRAPOLATION above the largest measured one.
        """
        from scipy.interpolate import PchipInterpolator
        from scipy.optimize import isotonic_regression

        _check_query(length, percentage)
        largest = self._percentages[-1]
        if percentage > largest * (1 + EXTRAPOLATION):
            known = ", ".join(f"{known:g}" for known in self._percentages)
            raise UserError(
                f"percentage={percentage:g} is above all in the calibration table ({known}); "
                f"calibrate at {percentage:g} % or more: calibration.mode=auto measures what is missing"
            )
        percentage = min(percentage, largest)
        curve = self._curves.get(percentage)
        if curve and (length in curve.measured or not self._monotone):
            return curve(length)
        # Curves that are ordered where they were measured may still cross in between: isotonic here too.
        speeds = isotonic_regression(self._speeds_at(length)).x
        between = PchipInterpolator([0.0, *self._percentages], [0.0, *speeds])
        return float(between(max(percentage, min(MIN_PERCENTAGE, self._percentages[0]))))

    def _speeds_at(self, length: int) -> list[float]:
        return [curve(length) for curve in self._curves.values()]


class _LengthCurve:
    """Speed over log(length) at one percentage; constant beyond the measured ends."""

    def __init__(self, measured: dict[int, float]) -> None:
        """`measured`: length -> TFLOP/s, by ascending length."""
        from scipy.interpolate import PchipInterpolator

        self.measured = measured
        self._shortest, self._longest = min(measured), max(measured)
        if len(measured) > 1:
            logs = [math.log(length) for length in measured]
            self._between = PchipInterpolator(logs, list(measured.values()))

    def __call__(self, length: int) -> float:
        length = min(max(length, self._shortest), self._longest)
        if length in self.measured:
            return self.measured[length]
        return float(self._between(math.log(length)))


@dataclass(frozen=True)
class FormulaModel:
    """speed = a polynomial of degree 2 in L = log10(length) and p = percentage, fitted by `fit`.

    Beyond the measured lengths and percentages it is the polynomial's own extrapolation.
    """

    centre: tuple[float, float]
    """Means of L and p over the rows."""
    scale: tuple[float, float]
    """Standard deviations of L and p; 1 where the rows have one value only."""
    coefficients: tuple[float, float, float, float, float, float]
    """Of 1, x, y, x^2, xy, y^2, with x and y the standardised L and p; TFLOP/s."""
    floor_per_percent: float
    """TFLOP/s per percent below which no answer falls."""
    r_squared: float
    """1 - residual / total sum of squares of the speeds, unweighted; 1 if all speeds are equal."""
    worst_error: float
    """Largest |fitted - measured| / measured over the rows; it shows what R^2 hides at small speeds."""
    num_rows: int

    @classmethod
    def fit(cls, rows: Iterable[SpeedRow]) -> FormulaModel:
        """Least squares with weights 1/speed^2, so that relative errors count.

        With fewer rows than coefficients, the solution of smallest norm in the standardised features.
        Raises UserError for no rows, and for rows of several devices or shapes.
        """
        import numpy as np
        from sklearn.linear_model import LinearRegression
        from sklearn.preprocessing import PolynomialFeatures, StandardScaler

        rows = _of_one_device(rows)
        speeds = np.array([row.speed_tflops for row in rows])
        scaler = StandardScaler()
        standard = scaler.fit_transform([[math.log10(row.length), row.percentage] for row in rows])
        terms = PolynomialFeatures(2, include_bias=False).fit_transform(standard)
        regression = LinearRegression().fit(terms, speeds, sample_weight=(speeds.min() / speeds) ** 2)
        errors = regression.predict(terms) - speeds
        total = float(((speeds - speeds.mean()) ** 2).sum())
        one_speed = total <= len(rows) * (1e-12 * speeds.mean()) ** 2
        centre, scale = np.asarray(scaler.mean_), np.asarray(scaler.scale_)
        return cls(
            centre=(float(centre[0]), float(centre[1])),
            scale=(float(scale[0]), float(scale[1])),
            coefficients=(float(regression.intercept_), *map(float, regression.coef_)),  # type: ignore[arg-type]
            floor_per_percent=FLOOR_FRACTION * min(row.speed_tflops / row.percentage for row in rows),
            r_squared=1.0 if one_speed else 1 - float((errors**2).sum()) / total,
            worst_error=float(abs(errors / speeds).max()),
            num_rows=len(rows),
        )

    def speed(self, length: int, percentage: float) -> float:
        """TFLOP/s at `length` tokens and `percentage`: the polynomial, or its floor where that is higher."""
        _check_query(length, percentage)
        x = (math.log10(length) - self.centre[0]) / self.scale[0]
        y = (percentage - self.centre[1]) / self.scale[1]
        terms = (1.0, x, y, x * x, x * y, y * y)
        fitted = math.fsum(c * term for c, term in zip(self.coefficients, terms, strict=True))
        return max(fitted, self.floor_per_percent * percentage)

    def describe(self) -> str:
        """The polynomial in L and p themselves, R^2, worst error and number of rows, in one line."""
        (u, v), (s, t) = self.centre, self.scale
        c, x, y, xx, xy, yy = self.coefficients
        x, y, xx, xy, yy = x / s, y / t, xx / s**2, xy / (s * t), yy / t**2
        expanded = {
            "": c - x * u - y * v + xx * u**2 + xy * u * v + yy * v**2,
            "*L": x - 2 * xx * u - xy * v,
            "*p": y - 2 * yy * v - xy * u,
            "*L^2": xx,
            "*L*p": xy,
            "*p^2": yy,
        }
        polynomial = " ".join(f"{value:+.6g}{term}" for term, value in expanded.items())
        exact = " (no more rows than coefficients: R^2 says nothing)" if self.num_rows <= 6 else ""
        return (
            f"speed [TFLOP/s] = {polynomial}, L = log10(tokens), p = percentage; "
            f"R^2 = {self.r_squared:.4f}, worst error {self.worst_error:.1%}, {self.num_rows} rows{exact}"
        )


def _of_one_device(rows: Iterable[SpeedRow]) -> Sequence[SpeedRow]:
    rows = list(rows)
    if not rows:
        raise UserError(
            "no calibration rows for this hardware, throttle and attention shape; calibrate first: "
            "calibration.mode=auto measures what is missing"
        )
    for name in ("hardware", "shape"):
        values = sorted({getattr(row, name) for row in rows})
        if len(values) > 1:
            raise UserError(
                f"calibration rows of more than one {name}: {', '.join(values)}; give those of one"
            )
    return rows


def _check_query(length: int, percentage: float) -> None:
    if not length >= 1:
        raise UserError(f"length={length} must be at least 1 token")
    if not 0 < percentage <= 100:
        raise UserError(f"percentage={percentage} must be above 0 and at most 100")
