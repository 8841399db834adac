"""The calibration table: measured speeds in a CSV file that people read and several processes write.

table = SpeedTable("outputs/calibration/speeds.csv")
table.add([row])                                      # locked, merged, replaced at once
table.rows(hardware="NVIDIA H200", shape=shape)       # filter
"""

from __future__ import annotations

import csv
import io
import math
import os
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path

from ringexp.atomic import write_atomically
from ringexp.errors import UserError
from ringexp.stored import DAMAGED, Warn, set_aside, to_stderr

LOCK_TIMEOUT_S = 60.0
"""How long `add` waits for other writers; one write takes milliseconds."""

CLOCK_SKEW = timedelta(minutes=1)
"""The largest accepted difference between the clocks of machines that share a table."""

Key = tuple[str, str, str, int, float, int, int, str, int]

Point = tuple[int, int, int]
"""What is measured: tokens of the prompt, the rank's own, ranks that have the others."""


@dataclass(frozen=True)
class SpeedRow:
    """One measured speed. Raises ValueError for a value that no measurement can give."""

    hardware: str
    """Device name, as the driver reports it."""
    throttle: str
    """Mechanism that slowed the rank: mps, green_context, cpu_pacing, cpu_quota or none."""
    percentage: float
    """What the throttle was asked for, in (0, 100]."""
    ranks_per_device: int
    """Ranks that ran on the device at the same time."""
    shape: str
    """Readable key of the work, e.g. attention-emb4096-h32-kv32-d128-bfloat16-cudnn."""
    length: int
    """Tokens of the prompt."""
    tokens: int
    """Of these the rank's own, under zigzag."""
    speed_tflops: float
    """TFLOP/s."""
    time_ms: float
    """Median time of one repetition."""
    spread: float
    """Interquartile range of the times over their median."""
    samples: int
    """Repetitions measured."""
    measured_at: str
    """ISO 8601 time; UTC where it names no zone."""
    versions: str
    """Software that was measured; may be empty."""
    beside: str = ""
    """Percentages of the other ranks on its GPU, such as 50+10; empty: none, or no GPU."""
    others: int = 1
    """Ranks that had the rest of the prompt: so many shards of others it computed with."""

    def __post_init__(self) -> None:
        for name in ("hardware", "throttle", "shape", "versions", "beside"):
            text = getattr(self, name)
            if not text.isprintable() or not (text.strip() or name in ("versions", "beside")):
                raise ValueError(f"{name}={text!r} must be one line of readable text")
        for name in ("ranks_per_device", "length", "tokens", "samples", "others"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.tokens > self.length:
            raise ValueError(f"tokens={self.tokens} must be at most length={self.length}")
        for name in ("speed_tflops", "time_ms"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
        if not 0 < self.percentage <= 100:
            raise ValueError(f"percentage={self.percentage} must be above 0 and at most 100")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"spread={self.spread} must be finite and at least 0")
        _ = self.time

    @property
    def key(self) -> Key:
        """What the row is a measurement of; a table holds one row a key."""
        return (
            self.hardware,
            self.shape,
            self.throttle,
            self.ranks_per_device,
            self.percentage,
            self.length,
            self.tokens,
            self.beside,
            self.others,
        )

    @property
    def point(self) -> Point:
        return self.length, self.tokens, self.others

    @property
    def is_half(self) -> bool:
        """Whether it is of one of two equal ranks, as speeds are; others tell what parts of the work cost."""
        return self.tokens == self.length // 2 and self.others == 1

    @property
    def time(self) -> datetime:
        """`measured_at` with its zone."""
        try:
            time = datetime.fromisoformat(self.measured_at.replace("Z", "+00:00"))
        except ValueError:
            raise ValueError(f"measured_at={self.measured_at!r} must be an ISO 8601 time") from None
        return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


COLUMNS = tuple(field.name for field in fields(SpeedRow))
_NUMBERS = {"percentage": float, "speed_tflops": float, "time_ms": float, "spread": float} | {
    "ranks_per_device": int,
    "length": int,
    "tokens": int,
    "samples": int,
    "others": int,
}


class SpeedTable:
    """The rows of one CSV file, one row a key, sorted by key. A missing file is an empty table.

    Every read sees the newest file, also after another process wrote it. Lines that are damaged do not count,
    and the user is told; `mend`, `add` and `drop` move them to a file beside the table.
    """

    def __init__(self, path: str | os.PathLike[str], warn: Warn = to_stderr) -> None:
        self.path = Path(path).resolve()
        self._warn = warn
        self._rows: tuple[SpeedRow, ...] = ()
        self._damaged: list[DamagedLine] = []
        self._read_from: tuple[int, int, int] | None = None

    @property
    def damaged_file(self) -> Path:
        """The file that keeps damaged lines."""
        return self.path.with_name(f"{self.path.name}{DAMAGED}-lines")

    def load(self) -> tuple[SpeedRow, ...]:
        """Return all good rows. The file is read again only when it changed, and is never changed here.

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
            self._warn(f"calibration table {self.path} is damaged and not used: {_reason(error)}")
        return self._rows

    def mend(self) -> tuple[SpeedRow, ...]:
        """Move damaged lines to `damaged_file`, rename a file that is no table, and return all good rows.

        Where nothing can be written the file stays as it is.
        """
        with suppress(UserError):
            self._set_aside()
        return self.load()

    def _set_aside(self) -> None:
        try:
            self._read()
            if self._damaged:
                self._change(lambda rows: rows)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            set_aside(
                self.path, error if isinstance(error, OSError) else ValueError(_reason(error)), self._warn
            )
            self._forget()

    def _forget(self) -> None:
        self._rows, self._damaged, self._read_from = (), [], None

    def _read(self) -> bool:
        """Read the file if it changed; returns whether it did.

        Raises OSError if it cannot be read, ValueError if it is no table.
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
        beside: str | None = None,
    ) -> list[SpeedRow]:
        """The rows that have every given value; None is any."""
        asked = (hardware, shape, throttle, ranks_per_device, percentage, length, None, beside, None)
        return [
            row
            for row in self.load()
            if all(want in (None, have) for want, have in zip(asked, row.key, strict=True))
        ]

    def add(self, rows: Iterable[SpeedRow]) -> None:
        """Merge `rows` into the file: of one key the newest `measured_at` stays, at a tie the added row.

        A row that claims to be from the future gives way to any other. Safe for several processes at once,
        and whoever is killed leaves the old file or the new one. Raises UserError if the file cannot be
        written, or stays locked for LOCK_TIMEOUT_S.
        """
        added = list(rows)
        if added:
            self._change(lambda rows: [*rows, *added])

    def drop(self, rows: Iterable[SpeedRow]) -> None:
        """Remove exactly these rows; newer ones of their keys stay. Safe and with errors as `add`."""
        dropped = set(rows)
        if dropped:
            self._change(lambda rows: [row for row in rows if row not in dropped])

    def _change(self, change: Callable[[Sequence[SpeedRow]], Iterable[SpeedRow]]) -> None:
        """Write what `change` makes of the newest rows, with the file locked; set aside what is damaged."""
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
                self._replace(newest(change(self._rows)))
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
        """Append the damaged lines to the file for them, each with the reason."""
        if not self._damaged:
            return
        before = b""
        with suppress(FileNotFoundError):
            before = self.damaged_file.read_bytes()
        kept = [b"# %s\n%s\n" % (each.reason.encode(), each.text) for each in self._damaged]
        write_atomically(self.damaged_file, before + b"".join(kept))
        first = self._damaged[0]
        self._warn(
            f"calibration table {self.path}: {len(self._damaged)} damaged line(s) are now in "
            f"{self.damaged_file.name} (line {first.number}: {first.reason}); what they held is measured anew"
        )

    def _replace(self, rows: Sequence[SpeedRow]) -> None:
        """Write the whole file anew; the caller holds the lock."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_NUMBERS.get(name, str)(getattr(row, name)) for name in COLUMNS])
        write_atomically(self.path, text.getvalue())


@dataclass(frozen=True)
class DamagedLine:
    """A line of the file that is no row, and why."""

    number: int
    text: bytes
    reason: str


def parse(content: bytes) -> tuple[list[SpeedRow], list[DamagedLine]]:
    """Return the rows of a table's file and its damaged lines; a row has one line.

    Raises ValueError if the first line does not name the columns.
    """
    first, *lines = [line.rstrip(b"\r") for line in content.split(b"\n")]
    header = tuple(_cells(first.removeprefix(BOM_UTF8)))
    if sorted(header) != sorted(COLUMNS):
        missing = [name for name in COLUMNS if name not in header]
        unknown = [name for name in header if name not in COLUMNS]
        raise ValueError(f"columns missing: {missing or 'none'}, unknown: {unknown or 'none'}")
    rows, damaged = [], []
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        try:
            cells = _cells(line)
            if len(cells) != len(COLUMNS):
                raise ValueError(f"the row must have {len(COLUMNS)} fields")
            rows.append(_row(dict(zip(header, cells, strict=True))))
        except (ValueError, csv.Error) as error:
            damaged.append(DamagedLine(number, line, _reason(error)))
    return rows, damaged


def _cells(line: bytes) -> list[str]:
    """Return the fields of one line. Raises ValueError (UnicodeDecodeError included) or csv.Error."""
    try:
        return next(csv.reader([line.decode("utf-8")], strict=True), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _reason(error: Exception) -> str:
    """Why something cannot be read, on one line of readable text."""
    said = error.strerror if isinstance(error, OSError) else str(error)
    return "".join(each if each.isprintable() else "?" for each in str(said))[:200]


def _row(record: dict[str, str]) -> SpeedRow:
    values: dict[str, str | float] = {}
    for name in COLUMNS:
        try:
            values[name] = _NUMBERS.get(name, str)(record[name])
        except ValueError:
            kind = "a whole number" if _NUMBERS[name] is int else "a number"
            raise ValueError(f"{name}={record[name]!r} is not {kind}") from None
    return SpeedRow(**values)  # type: ignore[arg-type]


def newest(rows: Iterable[SpeedRow]) -> tuple[SpeedRow, ...]:
    """Return the newest row of each key, sorted by key. Of two equally new rows, return the later one.

    A row that claims to be from the future is the oldest: its time says nothing.
    """
    latest = datetime.now(timezone.utc) + CLOCK_SKEW
    found: dict[Key, SpeedRow] = {}
    for row in rows:
        if row.key not in found or _age(row, latest) >= _age(found[row.key], latest):
            found[row.key] = row
    return tuple(found[key] for key in sorted(found))


def _age(row: SpeedRow, latest: datetime) -> tuple[bool, datetime]:
    return row.time <= latest, row.time
