"""Standard output that no reader and no locale can break."""

from __future__ import annotations

import io
import os
import sys


class _Patient(io.FileIO):
    """A file descriptor that drops output if its reader has gone or its disk is full."""

    def write(self, data: object) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().write(data)  # pyright: ignore[reportArgumentType]
        except OSError:
            return len(memoryview(data))  # pyright: ignore[reportArgumentType]


def keep_printing() -> None:
    """Let standard output go on without its reader (`| head`) and without characters its encoding lacks."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        return
    try:
        stream.flush()
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Patient(descriptor, "wb", closefd=False)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
