"""Checks of what callers of the planner pass in, before anything is computed from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields, replace
from typing import SupportsFloat, TypeVar

from ringexp.errors import UserError, whole_number
from ringexp.planning.cost import RankCost

T = TypeVar("T")

SMALLEST_MS, LARGEST_MS = 1e-100, 1e100
"""The range of one cost that is not 0. In this range no product of costs and tokens overflows or vanishes."""


def entries(name: str, value: Iterable[T] | None) -> list[T]:
    """Return what was given per rank as a list. Raises UserError unless it is a list, array or the like."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping | Set):
        raise UserError(f"{name}={value!r} must be a list with one entry for each rank")
    try:
        return list(value)
    except TypeError as error:  # an array without dimensions
        raise UserError(f"{name}={value!r} must be a list with one entry for each rank") from error


def positive_numbers(name: str, values: Sequence[object]) -> list[float]:
    """Return the values as floats. Raises UserError unless all of them are positive and finite."""
    numbers = [_number(value) for value in values]
    if any(number is None or not 0 < number < math.inf for number in numbers):
        shown = [str(value) for value in values]
        raise UserError(f"{name}=[{', '.join(shown)}] must be positive numbers, or a RankCost each")
    return [number for number in numbers if number is not None]


def checked_cost(cost: RankCost) -> RankCost:
    """Return the cost with plain numbers. Raises UserError for a part that nothing can be planned by."""
    values: dict[str, float] = {}
    for field in fields(cost):
        name, value = field.name, getattr(cost, field.name)
        if value is None and name in ("max_tokens", "alone_ms"):
            continue
        if name == "max_tokens":
            values[name] = whole_number("RankCost.max_tokens", value, least=0)
            continue
        number = _number(value)
        if number is None or not (number == 0 or SMALLEST_MS <= number <= LARGEST_MS):
            raise UserError(
                f"RankCost.{name}={value!r} must be 0 or a number from {SMALLEST_MS:g} to {LARGEST_MS:g} ms"
            )
        values[name] = number
    return replace(cost, **values)


def _number(value: object) -> float | None:
    """Return a number as a float; None for anything else, bools and text among it."""
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    if is_bool or not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
