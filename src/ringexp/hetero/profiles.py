"""Hetero profiles: one percentage per rank, the names of profiles, and the check of percentages.

    validate_percentages([100, 50])  ->  [100.0, 50.0]
    label([100, 50])                 ->  "100_50"
    named_profiles()["mps_100_50"]   ->  [100.0, 50.0]

A percentage is the part of the device that a rank may use. Calibration measures how fast the rank then is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby

from ringexp.errors import UserError
from ringexp.names import digest

MAX_LABEL = 60
"""Characters of a profile's label; wandb takes tags of 64."""


def validate_percentages(percentages: Sequence[float], key: str = "hetero.percentages") -> list[float]:
    """Return percentages as floats, in rank order.

    Args:
        percentages: what the user gave.
        key: the setting, for the message.

    Raises:
        UserError: unless it is a non-empty list of numbers in (0, 100].
    """
    rule = f"give one number per rank, above 0 and at most 100, such as {key}=[100,50]"
    if isinstance(percentages, str) or not isinstance(percentages, Sequence):
        raise UserError(f"{key}={percentages!r} is not a list: {rule}")
    if not percentages:
        raise UserError(f"{key}=[] names no rank: {rule}")
    for rank, value in enumerate(percentages):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and 0 < value <= 100):
            raise UserError(f"{key}={list(percentages)}: the entry of rank {rank} is {value!r}; {rule}")
    return [float(value) for value in percentages]


def format_percentage(percentage: float) -> str:
    """Return the shortest text of the same number: 50 -> "50", 12.5 -> "12.5"."""
    return str(int(percentage)) if float(percentage).is_integer() else repr(float(percentage))


def label(percentages: Sequence[float], limit: int = MAX_LABEL) -> str:
    """Return a profile's name in folder names, tables and wandb, in at most `limit` characters.

    [50, 100] is "50_100". The label of many ranks counts equal neighbours: "100x40_50x12". Where that is too
    long as well, the label is the number of ranks and a hash of all percentages: "64_ranks_1a2b3c4d".
    """
    values = [format_percentage(value) for value in percentages]
    plain = "_".join(values)
    if len(plain) <= limit:
        return plain
    runs = [(value, sum(1 for _ in equal)) for value, equal in groupby(values)]
    counted = "_".join(f"{value}x{count}" if count > 1 else value for value, count in runs)
    return counted if len(counted) <= limit else f"{len(values)}_ranks_{digest(plain)}"


def percentages_named(text: str) -> list[float] | None:
    """Return the percentages that a name such as "mps_33_66" or "33_66" stands for; None for other text."""
    match = re.fullmatch(r"(?:mps_)?((?:\d+(?:\.\d+)?)(?:[_/x:-]\d+(?:\.\d+)?)*)", text.strip())
    return [float(value) for value in re.split(r"[_/x:-]", match[1])] if match else None


def co_tenants(percentages: Sequence[float], devices: Sequence[object], rank: int) -> str:
    """Return the percentages of the other ranks on a rank's device, largest first, such as "50+10".

    Args:
        percentages: one per rank.
        devices: one per rank, equal for ranks that share a device.
        rank: the rank whose co-tenants are wanted.

    Returns:
        The percentages, joined by "+"; "" if the rank has the device to itself.
    """
    others = [
        percentage
        for other, percentage in enumerate(percentages)
        if other != rank and devices[other] == devices[rank]
    ]
    return "+".join(format_percentage(value) for value in sorted(others, reverse=True))


def named_profiles() -> dict[str, list[float]]:
    """Return every named profile of the `hetero` config group, in the order of a sweep."""
    slow = range(10, 100, 10)
    pairs = [[low, 100] for low in slow] + [[100, low] for low in slow]
    profiles = {"none": [100.0, 100.0]}
    for percentages in [*pairs, [100, 100], [100, 50, 25]]:
        profiles[f"mps_{label(percentages)}"] = [float(value) for value in percentages]
    return profiles
