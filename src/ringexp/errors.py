"""Errors whose message says it all; the command line prints them without a traceback."""


class UserError(ValueError):
    """A setting or an environment that cannot work.

    The message names the setting, its value, what is allowed and what to do, in one line.
    """


class RunFailed(RuntimeError):
    """A run that started and could not end well; the message says what happened, where, and where to look."""
