"""The progress file: rank 0 appends one JSON line per event, and the launcher reads along."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ringexp.atomic import no_link


class ProgressWriter:
    """Rank 0's end of the progress file. Without a path, nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self._file = None
        if path:
            self._file = open(path, "a", buffering=1, encoding="utf-8", opener=no_link)  # noqa: SIM115

    def job(self, index: int) -> None:
        """Report that the ranks begin a job of their list."""
        self._write({"job": index})

    def stage(self, text: str, total: int | None = None) -> None:
        """Report that a new step begins.

        Args:
            text: the title of the step.
            total: the number of calls of `advance` that will follow; None if there are none.
        """
        self._write({"stage": text, "total": total})

    def advance(self) -> None:
        """Report that one of the step's `total` parts is done."""
        self._write({"advance": 1})

    def warn(self, text: str) -> None:
        """Report a warning."""
        self._write({"warn": text})

    def _write(self, event: dict[str, object]) -> None:
        if self._file:
            self._file.write(json.dumps(event) + "\n")


class ProgressReader:
    """The launcher's end of the progress file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def events(self) -> Iterator[dict[str, object]]:
        """Yield the events that were written since the last call."""
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8") as file:
            file.seek(self._offset)
            while (line := file.readline()).endswith("\n"):
                self._offset = file.tell()
                yield json.loads(line)
