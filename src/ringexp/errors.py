"""Errors whose message says it all; the command line prints them without a traceback."""

import time


class UserError(ValueError):
    """A setting or an environment that cannot work.

    The message names the setting, its value, what is allowed and what to do, in one line.
    """


class RunFailed(RuntimeError):
    """A run that started and could not end well; the message says what happened, where, and where to look."""


class PeerFailed(RuntimeError):
    """Another rank failed, and this one cannot go on without it; the message says which and why."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to end before it was done; the message says by what. time_s: when."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.time_s = time.time()
