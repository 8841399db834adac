"""Values from files that others wrote, each checked and returned as its expected type."""

from __future__ import annotations

import math
from typing import TypeAlias

from ringexp.printable import plain
from ringexp.report.folder import Damaged
from ringexp.stored import JsonObject, JsonValue
from ringexp.tracking.files import CONFIG

Cell: TypeAlias = str | int | float | bool | None
"""A value of the table of runs. None: the run does not have it."""

MOST_TEXT = 2_000
MOST_SETTING = 200
LARGEST = 1e30
"""No figure of a run comes near it, and products of two are finite."""


def section(values: JsonObject, name: str, prefix: str = "") -> JsonObject:
    """Return a part of a config; an empty one where it is missing. Raises Damaged for anything else."""
    part = values.get(name)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise Damaged(f"{CONFIG} has {prefix}{name} that is no section")
    return part


def word(value: JsonValue, otherwise: str | None = None) -> str | None:
    """Return a text, or a number in words; `otherwise` for anything else."""
    if isinstance(value, str):
        return plain(value)[:MOST_TEXT]
    return otherwise if value is None or isinstance(value, dict | list) else setting(value)


def setting(value: JsonValue) -> str:
    """Return a setting in words: a scalar, or a list of them."""
    if isinstance(value, list):
        entries = ("..." if isinstance(entry, dict | list) else str(entry) for entry in value[:MOST_SETTING])
        return plain(f"[{', '.join(entries)}]")[:MOST_SETTING]
    return "..." if isinstance(value, dict) else plain(value)[:MOST_SETTING]


def number(value: JsonValue) -> float | None:
    """Return a number, or None for a value that is no number, infinite, or larger than any figure can be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        finite = float(value)
    except OverflowError:
        return None
    return finite if math.isfinite(finite) and abs(finite) < LARGEST else None
