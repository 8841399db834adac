"""The files of one run's folder, read as data: nothing in them is resolved or run, whoever wrote them.

Reading raises `Damaged` for a file that is not a regular file, leads out of its folder, is too large, or does
not have the expected content.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from pathlib import Path

from ringexp.printable import plain
from ringexp.stored import JsonObject, JsonValue
from ringexp.tracking.files import CONFIG, RESULTS
from ringexp.tracking.results import RunRecord, RunResult
from ringexp.tracking.typed_json import FieldError

MOST_BYTES = 256 * 2**20
MOST_CONFIG_BYTES = 2**20
MOST_CONFIG_VALUES = 10_000
"""A config has a few hundred; YAML can repeat a part without end."""
MOST_BRACKETS = 1_000


class Damaged(ValueError):
    """The error for a damaged file of a run. It names the file and the reason, and quotes no content."""


def read_config(folder: Path) -> JsonObject | None:
    """Return the settings of a run: its own record, or what Hydra composed if it never began; None without.

    Interpolations such as `${oc.env:HOME}` stay the text that they are.
    """
    for path in (folder / CONFIG, folder / ".hydra" / "config.yaml"):
        text = _text(path, folder, MOST_CONFIG_BYTES)
        if text is not None:
            return _mapping(_yaml(text, path), path)
    return None


def read_record(folder: Path) -> RunRecord | None:
    """Return what the results.json of a run says, with null for NaN; None if there is no such file."""
    path = folder / RESULTS
    text = _text(path, folder)
    if text is None:
        return None
    try:
        content = _mapping(json.loads(text, parse_constant=lambda name: None), path)
    except Damaged:
        raise
    except RecursionError:
        raise Damaged(f"{path.name} is nested too deeply") from None
    except ValueError as error:
        raise Damaged(f"{path.name} is no JSON: {plain(error)}") from None
    try:
        return RunRecord.from_json(content)
    except ValueError:
        raise Damaged(f"{path.name} has no status that a run can have") from None


def result_of(record: RunRecord) -> RunResult:
    """Return the figures that a results.json has. Raises Damaged, which names the figure that is none."""
    try:
        return record.figures()
    except FieldError as error:
        raise Damaged(f"{RESULTS} has {error.field} that is not of its type") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of one of a run's CSV files. Raises Damaged if the file is damaged or missing."""
    text = _text(path, path.parent)
    if text is None:
        raise Damaged(f"{path.name} is missing")
    try:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise Damaged(f"{path.name} is no CSV: {plain(error)}") from None


def _text(path: Path, folder: Path, most_bytes: int = MOST_BYTES) -> str | None:
    """Return the text of a file; None if there is no file. Never waits for the other end of a pipe."""
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise Damaged(f"{path.name} is a link that leads out of the folder; put a copy in its place")
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Damaged(f"{path.name} is no regular file")
            if status.st_size > most_bytes:
                raise Damaged(f"{path.name} is larger than {most_bytes} bytes")
            return file.read(most_bytes).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise Damaged(f"{path.name} is not UTF-8") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = error.strerror if isinstance(error, OSError) else "its links form a circle"
        raise Damaged(f"{path.name} cannot be read: {reason}") from None


def _yaml(text: str, path: Path) -> JsonValue:
    from yaml import YAMLError, safe_load

    if text.count("[") + text.count("{") > MOST_BRACKETS:  # which take a parser minutes
        raise Damaged(f"{path.name} is nested too deeply")
    try:
        content = safe_load(text)
    except RecursionError:
        raise Damaged(f"{path.name} is nested too deeply") from None
    except (YAMLError, ValueError, KeyError, AttributeError, TypeError, ArithmeticError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise Damaged(f"{path.name} is no YAML{where}") from None
    if _has_more_values(content, MOST_CONFIG_VALUES):
        raise Damaged(f"{path.name} has more than {MOST_CONFIG_VALUES} values")
    return content


def _has_more_values(value: JsonValue, most: int) -> bool:
    """Tell whether `value` contains more than `most` values. A repeated value counts every time."""
    waiting, seen = [value], 0
    while waiting and seen + len(waiting) <= most:
        part = waiting.pop()
        seen += 1
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list | set) else ()
    return bool(waiting)


def _mapping(value: JsonValue, path: Path) -> JsonObject:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Damaged(f"{path.name} is no mapping of names to values")
    return value
