"""The speed model of partitioner `formula`: a polynomial regression.

    FormulaModel.fit(rows).speed(16384, 50)    # TFLOP/s at 16,384 tokens and 50 %

Speeds are positive and finite for lengths of at least 1 token and percentages in (0, 100].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from ringexp.calibration.rows import SpeedRow, check_query, rows_of_one_device

FLOOR_FRACTION = 0.05
"""A speed is at least this fraction of the smallest measured speed per percent, times the percentage."""


@dataclass(frozen=True)
class FormulaModel:
    """The speed as a polynomial in L = log10(length) and p = percentage, fitted by `fit`.

    It extrapolates beyond the measured lengths and percentages.

    Attributes:
        centre: means of L and p over the rows.
        scale: standard deviations of L and p; 1 if all rows have the same value.
        coefficients: TFLOP/s, of 1, x, y, x^2, xy, y^2, ..., where x and y are the standardised L and p.
        floor_per_percent: the smallest speed per percent, TFLOP/s.
        r_squared: 1 - residual / total sum of squares of the speeds, unweighted; 1 if all speeds are equal.
        worst_error: the largest |fitted - measured| / measured, which shows errors of small speeds.
        num_rows: the number of rows.
        degree: the degree of the polynomial.
    """

    centre: tuple[float, float]
    scale: tuple[float, float]
    coefficients: tuple[float, ...]
    floor_per_percent: float
    r_squared: float
    worst_error: float
    num_rows: int
    degree: int = 2

    @classmethod
    def fit(cls, rows: Iterable[SpeedRow], degree: int = 2) -> FormulaModel:
        """Fit by least squares with weights 1 / speed^2, so that relative errors count.

        With fewer rows than coefficients it is the solution of smallest norm in the standardised features.

        Raises:
            UserError: for no rows, and for rows of several devices or shapes.
        """
        import numpy as np
        from sklearn.linear_model import LinearRegression
        from sklearn.preprocessing import PolynomialFeatures, StandardScaler

        rows = rows_of_one_device(rows)
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
        """Return the speed at a length and a percentage, TFLOP/s: the polynomial, but at least the floor."""
        check_query(length, percentage)
        x = (math.log10(length) - self.centre[0]) / self.scale[0]
        y = (percentage - self.centre[1]) / self.scale[1]
        terms = [math.prod([1.0] + [x] * i + [y] * j) for i, j in self._powers()]
        fitted = math.fsum(c * term for c, term in zip(self.coefficients, terms, strict=True))
        return max(fitted, self.floor_per_percent * percentage)

    def describe(self) -> str:
        """Return the polynomial in L and p themselves, R^2, worst error and number of rows, in one line."""
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
