"""The one error that is the user's to fix; the command line prints it without a traceback."""


class UserError(ValueError):
    """A setting or an environment that cannot work.

    The message names the setting, its value, what is allowed and what to do, in one line.
    """
