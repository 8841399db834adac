"""The file in which a rank leaves the exception that ended it, for the launcher."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from ringexp.atomic import PRIVATE, write_atomically


def error_file(rank_set: Path, rank: int) -> Path:
    """Return the path of a rank's error file, which has the time (s), type and message of an exception."""
    return rank_set.with_suffix(f".error_{rank}.json")


def write_error(rank_set: Path, rank: int, kind: str, message: str, time_s: float) -> None:
    """Write a rank's error file, unless it has one: its first error counts. A full disk is ignored.

    Args:
        rank_set: the file that the ranks were started with.
        rank: the rank that has ended.
        kind: the type of the exception.
        message: its message.
        time_s: when it was raised, in seconds since the epoch.
    """
    if not (path := error_file(rank_set, rank)).exists():
        document = {"time": time_s, "type": kind, "message": " ".join(message.split())}
        with suppress(OSError):
            write_atomically(path, json.dumps(document), PRIVATE)
