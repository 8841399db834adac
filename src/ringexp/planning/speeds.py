"""What partitioners may ask about the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ringexp.planning.cost import RankCost
from ringexp.planning.masks import Mask


class SpeedSource(Protocol):
    """Answers have one entry a rank, in rank order."""

    @property
    def percentages(self) -> Sequence[float]:
        """The asked percentages of the hetero profile."""
        ...

    def lut(self) -> Sequence[float]:
        """Speeds from the calibration table, interpolated in length and percentage, TFLOP/s."""
        ...

    def formula(self) -> Sequence[float]:
        """Speeds from the degree-2 regression over log10(length) and percentage, TFLOP/s."""
        ...

    def costs(self, mask: Mask) -> Sequence[RankCost]:
        """What work costs each rank, from the calibration table."""
        ...
