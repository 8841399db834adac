"""The calibration table as CSV text: one line per row, with damaged lines told from rows."""

from __future__ import annotations

import csv
import io
from codecs import BOM_UTF8
from collections.abc import Iterable
from dataclasses import dataclass, fields

from ringexp.calibration.rows import SpeedRow

COLUMNS = tuple(field.name for field in fields(SpeedRow))
"""The columns of the file, in their order."""

FORMER_NAMES = {"beside": "co_tenants"}
"""Columns of older files, by their names there."""

_NUMBERS = {"percentage": float, "speed_tflops": float, "time_ms": float, "spread": float} | {
    "ranks_per_device": int,
    "length": int,
    "tokens": int,
    "samples": int,
    "others": int,
}


@dataclass(frozen=True)
class DamagedLine:
    """A line of the file that is no row.

    Attributes:
        number: the line's number, from 1.
        text: the line.
        reason: why it is no row.
    """

    number: int
    text: bytes
    reason: str


def parse(content: bytes) -> tuple[list[SpeedRow], list[DamagedLine]]:
    """Return the rows of a table's file and its damaged lines. Each row is one line.

    Raises:
        ValueError: if the first line does not name the columns.
    """
    first, *lines = [line.rstrip(b"\r") for line in content.split(b"\n")]
    header = tuple(FORMER_NAMES.get(name, name) for name in _cells(first.removeprefix(BOM_UTF8)))
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
            damaged.append(DamagedLine(number, line, reason(error)))
    return rows, damaged


def _cells(line: bytes) -> list[str]:
    """Return the fields of one line. Raises ValueError (UnicodeDecodeError included) or csv.Error."""
    try:
        return next(csv.reader([line.decode("utf-8")], strict=True), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error


def reason(error: Exception) -> str:
    """Return why something cannot be read, as one line of readable text."""
    message = error.strerror if isinstance(error, OSError) else str(error)
    return "".join(character if character.isprintable() else "?" for character in str(message))[:200]


def _row(record: dict[str, str]) -> SpeedRow:
    """Return the row of these texts. Raises ValueError if one is no number, or no possible value."""
    values: dict[str, str | float] = {}
    for name in COLUMNS:
        try:
            values[name] = _NUMBERS.get(name, str)(record[name])
        except ValueError:
            kind = "a whole number" if _NUMBERS[name] is int else "a number"
            raise ValueError(f"{name}={record[name]!r} is not {kind}") from None
    return SpeedRow(**values)  # type: ignore[arg-type]


def csv_text(rows: Iterable[SpeedRow]) -> str:
    """Return the content of a table's file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_NUMBERS.get(name, str)(getattr(row, name)) for name in COLUMNS])
    return text.getvalue()
