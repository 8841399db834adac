"""How ranks tell the launcher where they are: one JSON line an event, appended to a file it follows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ringexp.atomic import no_link


class ProgressWriter:
    """Rank 0's end; without a path it says nothing."""

    def __init__(self, path: Path | None) -> None:
        self._file = None
        if path:
            self._file = open(path, "a", buffering=1, encoding="utf-8", opener=no_link)  # noqa: SIM115

    def job(self, index: int) -> None:
        """The ranks turn to the next job of their list."""
        self._write({"job": index})

    def stage(self, text: str, total: int | None = None) -> None:
        """A new step begins; `total` is how often `advance` will be called."""
        self._write({"stage": text, "total": total})

    def advance(self) -> None:
        self._write({"advance": 1})

    def warn(self, text: str) -> None:
        self._write({"warn": text})

    def _write(self, event: dict[str, object]) -> None:
        if self._file:
            self._file.write(json.dumps(event) + "\n")


class ProgressReader:
    """The launcher's end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def events(self) -> Iterator[dict[str, object]]:
        """What was written since the last call."""
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8") as file:
            file.seek(self._offset)
            while (line := file.readline()).endswith("\n"):
                self._offset = file.tell()
                yield json.loads(line)
