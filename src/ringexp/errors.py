"""Errors whose message says it all; the command line prints them without a traceback."""

from __future__ import annotations

import operator
import time
from typing import Any


class UserError(ValueError):
    """A setting or an environment that cannot work.

    The message names the setting, its value, what is allowed and what to do, in one line.
    """


def whole_number(name: str, value: Any, least: int, most: int | None = None, advice: str = "") -> int:
    """Return `value` as an int.

    Args:
        name: the argument, for the message.
        value: what the caller gave. Whole numbers of NumPy and the like are taken; bools and floats are not.
        least: the smallest number allowed.
        most: the largest number allowed. None: any.
        advice: the end of the message.

    Raises:
        UserError: if the value is no whole number, or not in the range.
    """
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        number = None if is_bool else operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number < least or (most is not None and number > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name}={value!r} must be a whole number {allowed}{advice}")
    return number


class RingError(RuntimeError):
    """A ring that ended because one of its ranks failed; the message says which rank, and why."""


class RunFailed(RuntimeError):
    """A run that started and could not end well; the message says what happened, where, and where to look."""


class PeerFailed(RuntimeError):
    """Another rank failed, and this one cannot go on without it; the message says which and why."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to end before it was done; the message says by what. time_s: when."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.time_s = time.time()
