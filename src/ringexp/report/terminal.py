"""The console that tables and messages are printed on."""

from __future__ import annotations

import sys

from rich.console import Console

PLAIN_WIDTH = 160
"""Columns of a table where standard output is not a terminal, such as a file."""


def text_console() -> Console:
    """Return a console on standard output, as wide as the terminal or `PLAIN_WIDTH` columns."""
    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
