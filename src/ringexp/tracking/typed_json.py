"""Dataclasses out of parsed JSON, each value checked against the type of its field."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import TypeVar, Union, get_args, get_origin, get_type_hints

from ringexp.stored import JsonValue

T = TypeVar("T")


class FieldError(ValueError):
    """The error for a field that is missing or has a value of another type. `field` is its dotted name."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field = field


@dataclass(frozen=True)
class Reader:
    """Reads JSON as dataclasses. Keys that a dataclass does not have are ignored.

    Attributes:
        whole: a field without a default must be there, and numbers must be finite. Otherwise, as for files of
            an older schema, what is missing is NaN, 0, false, an empty text, or an empty list, and a null
            among numbers is NaN.
        not_finite: fields whose number may be infinite or NaN nevertheless.
    """

    whole: bool
    not_finite: frozenset[str] = frozenset()

    def read(self, kind: type[T], content: Mapping[str, JsonValue], prefix: str = "") -> T:
        """Build a dataclass from a JSON object. Raises FieldError for a bad value."""
        hints = _hints(kind)
        values: dict[str, object] = {}
        for item in fields(kind):  # type: ignore[arg-type]
            name = f"{prefix}{item.name}"
            if item.name in content:
                values[item.name] = self._value(content[item.name], hints[item.name], name)
            elif _is_required(item):
                if self.whole:
                    raise FieldError(name, f"{name} is missing")
                values[item.name] = _nothing(hints[item.name])
        return kind(**values)

    def _value(self, value: JsonValue, hint: object, name: str) -> object:
        if get_origin(hint) in (Union, types.UnionType):
            (inner,) = (option for option in get_args(hint) if option is not type(None))
            return None if value is None else self._value(value, inner, name)
        if hint is float and value is None and not self.whole:
            return math.nan
        if get_origin(hint) is list and isinstance(value, list):
            (entry_hint,) = get_args(hint)
            return [self._value(entry, entry_hint, f"{name}.{at}") for at, entry in enumerate(value)]
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
            return self.read(hint, value, f"{name}.")
        if isinstance(hint, type) and _is_scalar(value, hint):
            return value if hint is not float else self._float(value, name)
        raise FieldError(name, f"{name}={value!r:.60} is not of its type")

    def _float(self, value: JsonValue, name: str) -> float:
        assert isinstance(value, int | float)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if self.whole and name not in self.not_finite and not math.isfinite(number):
            raise FieldError(name, f"{name}={value!r:.60} is not finite")
        return number


def _is_scalar(value: JsonValue, kind: type) -> bool:
    """Tell whether a parsed JSON value is a text, a truth value or a number of this type."""
    if kind in (bool, str):
        return isinstance(value, kind)
    if isinstance(value, bool):
        return False
    return (kind is int and isinstance(value, int)) or (kind is float and isinstance(value, int | float))


def _is_required(item: Field[object]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _nothing(hint: object) -> object:
    """Return the value of a field that a file does not have."""
    if get_origin(hint) in (Union, types.UnionType):
        return None
    if get_origin(hint) is list:
        return []
    empty: dict[object, object] = {float: math.nan, int: 0, bool: False, str: ""}
    return empty[hint]


@cache
def _hints(kind: type) -> dict[str, object]:
    return get_type_hints(kind)
