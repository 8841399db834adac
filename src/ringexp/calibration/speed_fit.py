"""What results say of a regression over measured speeds. Needs no library, unlike the regression itself."""

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
