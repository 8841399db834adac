"""The calibration table: measured speeds in a CSV file that people read and several processes write.

table = SpeedTable("outputs/calibration/speeds.csv")
table.add([row])                                      # locked, merged, replaced at once
table.rows(hardware="NVIDIA H200", shape=shape)       # filter
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ringexp.atomic import write_atomically
from ringexp.calibration.csv_file import DamagedLine, csv_text, parse, reason
from ringexp.calibration.rows import SpeedRow, newest
from ringexp.errors import UserError
from ringexp.stored import DAMAGED, Warn, set_aside, to_stderr

LOCK_TIMEOUT_S = 60.0
"""Seconds for which a change waits for other writers; one write takes milliseconds."""


class SpeedTable:
    """The rows of one CSV file, one row per key, sorted by key. A missing file is an empty table.

    Every read sees the newest file, also after another process wrote it. Damaged lines are skipped with a
    warning. `mend`, `add` and `drop` move them to `damaged_file`.
    """

    def __init__(self, path: str | os.PathLike[str], warn: Warn = to_stderr) -> None:
        self.path = Path(path).resolve()
        self._warn = warn
        self._rows: tuple[SpeedRow, ...] = ()
        self._damaged: list[DamagedLine] = []
        self._read_from: tuple[int, int, int] | None = None

    @property
    def damaged_file(self) -> Path:
        """The file to which damaged lines are moved."""
        return self.path.with_name(f"{self.path.name}{DAMAGED}-lines")

    def load(self) -> tuple[SpeedRow, ...]:
        """Return all good rows, without changing the file. It is read again only if it changed.

        A file that is no table at all counts as empty.
        """
        try:
            if self._read() and self._damaged:
                first = self._damaged[0]
                self._warn(
                    f"calibration table {self.path}: {len(self._damaged)} damaged line(s) are not used "
                    f"(line {first.number}: {first.reason})"
                )
        except FileNotFoundError:
            self._forget()
        except (OSError, ValueError) as error:
            self._forget()
            self._warn(f"calibration table {self.path} is damaged and not used: {reason(error)}")
        return self._rows

    def mend(self) -> tuple[SpeedRow, ...]:
        """Move damaged lines to `damaged_file`, rename a file that is no table, and return all good rows.

        Where nothing can be written the file stays as it is.
        """
        with suppress(UserError):
            self._set_aside()
        return self.load()

    def _set_aside(self) -> None:
        """Move damaged lines away, or the whole file if it is no table."""
        try:
            self._read()
            if self._damaged:
                self._change(lambda rows: rows)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            set_aside(
                self.path, error if isinstance(error, OSError) else ValueError(reason(error)), self._warn
            )
            self._forget()

    def _forget(self) -> None:
        self._rows, self._damaged, self._read_from = (), [], None

    def _read(self) -> bool:
        """Read the file if it changed. Return whether it did.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is no table.
        """
        with open(self.path, "rb") as file:
            status = os.fstat(file.fileno())
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if version == self._read_from:
                return False
            rows, self._damaged = parse(file.read())
            self._rows, self._read_from = newest(rows), version
            return True

    def rows(
        self,
        *,
        hardware: str | None = None,
        throttle: str | None = None,
        percentage: float | None = None,
        ranks_per_device: int | None = None,
        shape: str | None = None,
        length: int | None = None,
        co_tenants: str | None = None,
    ) -> list[SpeedRow]:
        """Return the rows that have every given value. None stands for any value."""
        wanted = (hardware, shape, throttle, ranks_per_device, percentage, length, None, co_tenants, None)
        return [
            row
            for row in self.load()
            if all(value in (None, own) for value, own in zip(wanted, row.key, strict=True))
        ]

    def add(self, rows: Iterable[SpeedRow]) -> None:
        """Merge `rows` into the file and keep the newest row of each key, at a tie the added one.

        A row whose time lies in the future gives way to any other. Several processes may call this at once. A
        process that is killed leaves the old file or the new one.

        Raises:
            UserError: if the file cannot be written, or stays locked for LOCK_TIMEOUT_S.
        """
        added = list(rows)
        if added:
            self._change(lambda rows: [*rows, *added])

    def drop(self, rows: Iterable[SpeedRow]) -> None:
        """Remove exactly these rows; newer rows of their keys stay. Safety and errors are those of `add`."""
        dropped = set(rows)
        if dropped:
            self._change(lambda rows: [row for row in rows if row not in dropped])

    def _change(self, change: Callable[[Sequence[SpeedRow]], Iterable[SpeedRow]]) -> None:
        """Lock the file, set damaged lines aside, and replace the newest rows by `change(rows)`."""
        from filelock import FileLock, Timeout

        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock, timeout=LOCK_TIMEOUT_S):
                try:
                    self._read()
                except FileNotFoundError:
                    self._forget()
                except (IsADirectoryError, PermissionError, ValueError) as error:
                    set_aside(self.path, error, self._warn)
                    self._forget()
                self._keep_damaged()
                write_atomically(self.path, csv_text(newest(change(self._rows))))
                self._forget()
        except Timeout:
            raise UserError(
                f"calibration table {self.path}: {lock} stayed locked for {LOCK_TIMEOUT_S:.0f} s; "
                f"end the process that holds it"
            ) from None
        except OSError as error:
            raise UserError(
                f"calibration table {self.path} cannot be written: {error.strerror}; "
                f"choose a path you may write"
            ) from error

    def _keep_damaged(self) -> None:
        """Append the damaged lines to `damaged_file`, each with the reason."""
        if not self._damaged:
            return
        before = b""
        with suppress(FileNotFoundError):
            before = self.damaged_file.read_bytes()
        kept = [b"# %s\n%s\n" % (line.reason.encode(), line.text) for line in self._damaged]
        write_atomically(self.damaged_file, before + b"".join(kept))
        first = self._damaged[0]
        self._warn(
            f"calibration table {self.path}: {len(self._damaged)} damaged line(s) are now in "
            f"{self.damaged_file.name} (line {first.number}: {first.reason}); their speeds are measured again"
        )
