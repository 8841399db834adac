"""The built-in partitioners that give out tokens in proportion to weights.

Each takes what is known of the ranks' speeds and its own settings, and returns one weight per rank. The table
`choices.PARTITIONERS` names them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringexp.planning.speeds import SpeedSource


def even(source: SpeedSource, settings: object = None) -> list[float]:
    """Return equal weights."""
    return [1.0] * len(source.percentages)


def uneven(source: SpeedSource, settings: object = None) -> Sequence[float]:
    """Return the profile's percentages."""
    return source.percentages


def lut(source: SpeedSource, settings: object = None) -> Sequence[float]:
    """Return the measured speeds, interpolated in the calibration table."""
    return source.lut()


def formula(source: SpeedSource, settings: object = None) -> Sequence[float]:
    """Return the speeds by a regression over the calibration table."""
    return source.formula()
