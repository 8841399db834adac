"""Speed models: from the rows of a calibration table to the speed at any length and percentage.

    LookupTable(rows).speed(16384, 50)        # interpolates between what was measured (partitioner lut)
    FormulaModel.fit(rows).speed(16384, 50)   # polynomial regression (partitioner formula)

Both answer in TFLOP/s, positive and finite, for lengths >= 1 token and percentages in (0, 100].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ringexp.calibration.rows import SpeedRow
from ringexp.errors import UserError

EXTRAPOLATION = 0.05
"""How far above the largest measured percentage, relative to it, a lookup still takes that one's speed."""

MIN_PERCENTAGE = 0.01
"""A lookup takes smaller percentages for this one: the curve ends in speed 0 at 0 %."""

FLOOR_FRACTION = 0.05
"""A formula never answers below this fraction of the smallest measured speed per percent x percentage."""


Curve = Callable[[float], Any]
CurveThrough = Callable[[Sequence[float], Sequence[float]], Curve]
"""Returns the curve through points, given by their coordinates x, ascending, and y."""


def _pchip(x: Sequence[float], y: Sequence[float]) -> Curve:
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(x, y)


def _linear(x: Sequence[float], y: Sequence[float]) -> Curve:
    from numpy import interp

    return lambda at: interp(at, x, y)


_CURVES: dict[str, CurveThrough] = {"pchip": _pchip, "linear": _linear}


class LookupTable:
    """Monotone interpolation between measured speeds: PCHIP (Fritsch & Butland 1984) or straight lines.

    For each measured percentage a curve over log(length), constant beyond the measured ends; then a curve
    over the percentages, with speed 0 at 0 %. Measured points are returned exactly. Between percentages the
    speeds are first made non-decreasing by isotonic regression, so noise cannot make a larger percentage
    slower; at a measured percentage noise stays as it was measured.

    Raises UserError for no rows, and for rows of several devices or shapes, or two at one point.
    """

    def __init__(self, rows: Iterable[SpeedRow], interpolation: str = "pchip") -> None:
        """Read rows. interpolation: pchip or linear, between lengths and between percentages."""
        self._between = _CURVES[interpolation]
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
        self._curves = {
            percentage: _LengthCurve(speeds, self._between) for percentage, speeds in measured.items()
        }
        at_knots = [self._speeds_at(length) for curve in self._curves.values() for length in curve.measured]
        self._monotone = all(speeds == sorted(speeds) for speeds in at_knots)

    def speed(self, length: int, percentage: float) -> float:
        """TFLOP/s at `length` tokens and `percentage`.

        Raises UserError for a percentage more than EXTRAPOLATION above the largest measured one.
        """
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
        between = self._between([0.0, *self._percentages], [0.0, *speeds])
        return float(between(max(percentage, min(MIN_PERCENTAGE, self._percentages[0]))))

    def _speeds_at(self, length: int) -> list[float]:
        return [curve(length) for curve in self._curves.values()]


class _LengthCurve:
    """Speed over log(length) at one percentage; constant beyond the measured ends."""

    def __init__(self, measured: dict[int, float], between: CurveThrough) -> None:
        """Draw the curve. measured: length -> TFLOP/s, by ascending length."""
        self.measured = measured
        self._shortest, self._longest = min(measured), max(measured)
        if len(measured) > 1:
            logs = [math.log(length) for length in measured]
            self._between = between(logs, list(measured.values()))

    def __call__(self, length: int) -> float:
        length = min(max(length, self._shortest), self._longest)
        if length in self.measured:
            return self.measured[length]
        return float(self._between(math.log(length)))


@dataclass(frozen=True)
class FormulaModel:
    """speed = a polynomial in L = log10(length) and p = percentage, fitted by `fit`.

    Beyond the measured lengths and percentages it is the polynomial's own extrapolation.
    """

    centre: tuple[float, float]
    """Means of L and p over the rows."""
    scale: tuple[float, float]
    """Standard deviations of L and p; 1 where the rows have one value only."""
    coefficients: tuple[float, ...]
    """Of 1, x, y, x^2, xy, y^2, ..., with x and y the standardised L and p; TFLOP/s."""
    floor_per_percent: float
    """TFLOP/s per percent below which no answer falls."""
    r_squared: float
    """1 - residual / total sum of squares of the speeds, unweighted; 1 if all speeds are equal."""
    worst_error: float
    """Largest |fitted - measured| / measured over the rows; it shows what R^2 hides at small speeds."""
    num_rows: int
    degree: int = 2

    @classmethod
    def fit(cls, rows: Iterable[SpeedRow], degree: int = 2) -> FormulaModel:
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
        terms = PolynomialFeatures(degree, include_bias=False).fit_transform(standard)
        regression = LinearRegression().fit(terms, speeds, sample_weight=(speeds.min() / speeds) ** 2)
        errors = regression.predict(terms) - speeds
        total = float(((speeds - speeds.mean()) ** 2).sum())
        one_speed = total <= len(rows) * (1e-12 * speeds.mean()) ** 2
        centre, scale = np.asarray(scaler.mean_), np.asarray(scaler.scale_)
        return cls(
            centre=(float(centre[0]), float(centre[1])),
            scale=(float(scale[0]), float(scale[1])),
            coefficients=(float(regression.intercept_), *map(float, regression.coef_)),
            floor_per_percent=FLOOR_FRACTION * min(row.speed_tflops / row.percentage for row in rows),
            r_squared=1.0 if one_speed else 1 - float((errors**2).sum()) / total,
            worst_error=float(abs(errors / speeds).max()),
            num_rows=len(rows),
            degree=degree,
        )

    def speed(self, length: int, percentage: float) -> float:
        """TFLOP/s at `length` tokens and `percentage`: the polynomial, or its floor where that is higher."""
        _check_query(length, percentage)
        x = (math.log10(length) - self.centre[0]) / self.scale[0]
        y = (percentage - self.centre[1]) / self.scale[1]
        terms = [math.prod([1.0] + [x] * i + [y] * j) for i, j in self._powers()]
        fitted = math.fsum(c * term for c, term in zip(self.coefficients, terms, strict=True))
        return max(fitted, self.floor_per_percent * percentage)

    def describe(self) -> str:
        """The polynomial in L and p themselves, R^2, worst error and number of rows, in one line."""
        (u, v), (s, t) = self.centre, self.scale
        expanded = dict.fromkeys(self._powers(), 0.0)
        for (i, j), coefficient in zip(self._powers(), self.coefficients, strict=True):
            coefficient = coefficient / (s**i * t**j)
            for a, b in product(range(i + 1), range(j + 1)):
                ways = math.comb(i, a) * math.comb(j, b)
                expanded[a, b] += ways * coefficient * (-u) ** (i - a) * (-v) ** (j - b)
        polynomial = " ".join(
            f"{value:+.6g}{_power('L', i)}{_power('p', j)}" for (i, j), value in expanded.items()
        )
        few = self.num_rows <= len(self.coefficients)
        exact = " (no more rows than coefficients: R^2 says nothing)" if few else ""
        return (
            f"speed [TFLOP/s] = {polynomial}, L = log10(tokens), p = percentage; "
            f"R^2 = {self.r_squared:.4f}, worst error {self.worst_error:.1%}, {self.num_rows} rows{exact}"
        )

    def _powers(self) -> Iterator[tuple[int, int]]:
        """Yield the powers of x and y in each term, in the order of the coefficients."""
        return ((total - j, j) for total in range(self.degree + 1) for j in range(total + 1))


def _power(name: str, exponent: int) -> str:
    """Return a factor of a polynomial's term as text, such as "*L^2"; "" for exponent 0."""
    return "" if not exponent else f"*{name}" if exponent == 1 else f"*{name}^{exponent}"


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
