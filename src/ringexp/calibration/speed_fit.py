"""The record that results keep of a regression over measured speeds. Reading it needs no library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeedFit:
    """A regression over measured speeds.

    Attributes:
        formula: the fitted polynomial as text.
        r_squared: the part of the rows' variance that it explains, at most 1.
        num_rows: how many calibration rows it was fitted to.
    """

    formula: str
    r_squared: float
    num_rows: int
