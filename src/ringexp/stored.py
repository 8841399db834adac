"""Write JSON files strictly, and check files of earlier runs before they are used."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeAlias, TypeVar

from ringexp.atomic import write_atomically
from ringexp.printable import plain

T = TypeVar("T")

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
"""A value as `json.loads` returns it."""

JsonObject: TypeAlias = dict[str, JsonValue]

Warn = Callable[[str], None]
"""A function that shows the user one line."""

DAMAGED = ".damaged"
"""The end of the name that a damaged file gets."""

NOT_FINITE = "not_finite"
"""The key under which a JSON object lists those of its values that are null because they were not finite."""


def to_stderr(text: str) -> None:
    """Print a warning of one line to standard error."""
    print(f"ringexp: warning: {plain(text)}", file=sys.stderr)


def digest(facts: object) -> str:
    """Return 16 hexadecimal digits of a hash of JSON facts. Equal facts have equal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def strict_json(value: object, indent: int | None = 2) -> str:
    """Return `value` as JSON that every parser reads. Numbers that are not finite become null.

    An object then has a further key, `not_finite`, with the place and the value of each such number:
    {"error_max_abs": "nan"}.
    """
    places: dict[str, str] = {}
    document = _finite(value, "", places)
    if places and isinstance(document, dict):
        document[NOT_FINITE] = places | (document.get(NOT_FINITE) or {})
    return json.dumps(document, indent=indent, allow_nan=False) + "\n"


def _finite(value: object, place: str, places: dict[str, str]) -> object:
    """Copy `value` with null for numbers that are not finite, and record these in `places`."""
    if isinstance(value, float) and not math.isfinite(value):
        places[place] = str(value)
        return None
    before = f"{place}." if place else ""
    if isinstance(value, dict):
        return {name: _finite(part, f"{before}{name}", places) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part, f"{before}{index}", places) for index, part in enumerate(value)]
    return value


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """Replace `path` by `value` as strict JSON, in one step."""
    write_atomically(path, strict_json(value, indent))


def parse_json(content: bytes) -> JsonValue:
    """Read strict JSON. Raises ValueError for anything else, NaN and Infinity included."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_checked(path: Path, check: Callable[[JsonValue], T], warn: Warn = to_stderr) -> T | None:
    """Read a JSON file of an earlier run. A damaged file is set aside, with one warning.

    Args:
        path: the file, which may be missing.
        check: turns the parsed content into the result, or raises ValueError, KeyError or TypeError.
        warn: receives the warning.

    Returns:
        The result of `check`; None if the file is missing or damaged.
    """
    try:
        return check(parse_json(path.read_bytes()))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        set_aside(path, error, warn)
        return None


def set_aside(path: Path, error: Exception, warn: Warn = to_stderr) -> None:
    """Rename a damaged file, or a folder in its place, so that it is kept and a new one can be written."""
    aside = unused(path.with_name(path.name + DAMAGED))
    why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
    damage = f"{path} is damaged ({type(error).__name__}: {why})"
    try:
        os.rename(path, aside)
        warn(f"{damage}; it is now {aside.name}, and its content is measured again")
    except FileNotFoundError:  # another process was quicker
        pass
    except OSError as refused:
        warn(f"{damage} and cannot be renamed ({refused.strerror}); its content is measured again")


def unused(path: Path) -> Path:
    """Return `path`, or the first of `path.2`, `path.3` ... that does not exist."""
    names = (path if n == 1 else path.with_name(f"{path.name}.{n}") for n in range(1, 10_000))
    return next(name for name in names if not os.path.lexists(name))


def positive(value: object, name: str) -> float:
    """Return a number that is finite and above 0. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r} is no number")
    with suppress(OverflowError):
        if math.isfinite(value) and value > 0:
            return float(value)
    raise ValueError(f"{name}={value!r} must be finite and above 0")


def positive_or_none(value: object, name: str) -> float | None:
    """Return None for null, else what `positive` returns."""
    return None if value is None else positive(value, name)


def text(value: object, name: str) -> str:
    """Return a non-empty text. Raises ValueError for anything else."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}={value!r} is no text")
    return value


def an_object(value: object, name: str) -> JsonObject:
    """Return a JSON object. Raises ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    return value
