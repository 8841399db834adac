"""The questions that partitioners may ask about the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ringexp.planning.cost import RankCost
from ringexp.planning.masks import Mask


class SpeedSource(Protocol):
    """A source of the ranks' speeds. Answers have one entry per rank, in rank order."""

    @property
    def percentages(self) -> Sequence[float]:
        """The percentages of the hetero profile."""
        ...

    def lut(self) -> Sequence[float]:
        """Return speeds in TFLOP/s, interpolated over length and percentage in the calibration table."""
        ...

    def formula(self) -> Sequence[float]:
        """Return speeds in TFLOP/s by a regression over log10(length) and percentage."""
        ...

    def costs(self, mask: Mask) -> Sequence[RankCost]:
        """Return the costs of work under this mask, from the calibration table."""
        ...
