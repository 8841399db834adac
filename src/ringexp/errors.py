"""Errors whose message is enough for a user. The command line prints them without a traceback."""

from __future__ import annotations

import operator
import time


class UserError(ValueError):
    """A setting or an environment that cannot work.

    The message names the setting, its value, what is allowed and what to do, in one line.
    """


def whole_number(name: str, value: object, least: int, most: int | None = None, advice: str = "") -> int:
    """Return `value` as an int.

    Args:
        name: the argument, for the message.
        value: the number. Whole numbers of NumPy and similar libraries are allowed; bools and floats are not.
        least: the smallest number allowed.
        most: the largest number allowed. None: any.
        advice: the end of the message.

    Raises:
        UserError: if the value is no whole number, or not in the range.
    """
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        number = None if is_bool else operator.index(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number < least or (most is not None and number > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name}={value!r} must be a whole number {allowed}{advice}")
    return number


class RingError(RuntimeError):
    """A ring ended because one of its ranks failed; the message names the rank and the reason."""


class RunFailed(RuntimeError):
    """A run failed after its start; the message says what happened, on which rank, and where the log is."""


class PeerFailed(RuntimeError):
    """Another rank failed, so this one cannot continue; the message names the rank and the reason."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end early; the message names it.

    Attributes:
        time_s: the time of the signal, in seconds since the epoch.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.time_s = time.time()
