"""One run as a row of the table: its identity, how it ended, and its figures, each checked first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringexp.printable import plain
from ringexp.report.folder import Damaged, read_config, read_results
from ringexp.report.identity import MOST_RANKS, identity
from ringexp.report.values import LARGEST, MOST_TEXT, number, word
from ringexp.tracking.files import RESULTS

COMPLETE, FAILED, INTERRUPTED, NOT_RUN = "complete", "failed", "interrupted", "not run"

FIGURES_READ = (
    "latency_ms_median",
    "latency_ms_spread",
    "latency_ms_back_to_back",
    "latency_ms_predicted",
    "speedup_over_even",
    "capacity_efficiency",
    "slowdown",
    "efficiency",
    "tflops",
    "error_max_abs",
    "error_single_max_abs",
    "references.single_ms",
    "references.single_back_to_back_ms",
    "adaptation.total_ms",
    "hop_gbps",
    "hop_latency_ms",
)
"""Numbers that the report computes with."""

PER_RANK = (
    "tokens",
    "kv_tokens",
    "shares",
    "speeds",
    "busy_ms",
    "linear_ms",
    "attention_ms",
    "wait_ms",
    "comm_ms",
    "idle_ms",
    "peak_memory_bytes",
)
"""Lists with a number per rank, which is at least 0."""

IDENTITY_READ = (
    "model",
    "seq_len",
    "layout",
    "partitioner",
    "split",
    "shape",
    "percentages",
    "drift",
    "prompt_lengths",
)
"""Keys of results.json whose values `identity` takes and that are text."""

OURS = ("run", "folder", "status", "profile", "drift", "pattern", "hardware", "settings", "shard")
OURS += ("slow_percent", "fast_percent", "world_size", "kernel_asked", "prediction_error")
OURS += ("speedup_over_contiguous_even", "speedup_over_single", "capacity_efficiency_back_to_back")
OURS += ("base_ms", "over_even", "latency_ms_median_even", "latency_ms_median_balanced")
OURS += ("adaptation.total_ms.static",)
"""Columns that no results.json can set."""

MOST_NAMES = 2_000
MOST_DEPTH = 5


def read_row(folder: Path) -> dict[str, Any]:
    """Return the row of the run in `folder`; if its files are damaged, that of a run that failed."""
    row: dict[str, Any] = {}
    try:
        config = read_config(folder) or {}
        row = identity(config, {})
        results = read_results(folder)
        results = {"status": NOT_RUN} if results is None else results
        row = identity(config, results)
        row |= _columns(results, row["world_size"] or 0)
        status, reason = _ending(results, row)
    except Damaged as error:
        status, reason = FAILED, f"damaged ({error})"
    return row | {"run": plain(folder.name), "folder": str(folder), "status": status, "reason": reason}


def _ending(results: dict[str, Any], row: dict[str, Any]) -> tuple[str, str]:
    """Return the status of a run, and the reason why the run is not complete."""
    status, reason = results.get("status"), row.get("reason") or ""
    if status == "planned":
        return FAILED, "it did not finish"
    if status == NOT_RUN:
        return NOT_RUN, "it was not begun"
    if status in (FAILED, INTERRUPTED):
        return str(status), reason
    if status != COMPLETE:
        raise Damaged(f"{RESULTS} has no status that a run can have")
    if row.get("exact") is False:
        return FAILED, f"its output is wrong by {row.get('error_max_abs')}"
    if not (row.get("latency_ms_median") or 0) > 0:
        raise Damaged(f"{RESULTS} is complete without a latency above 0")
    return COMPLETE, reason


def _columns(results: dict[str, Any], world_size: int) -> dict[str, Any]:
    """Return the columns that results.json gives. Raises Damaged for figures that are not numbers."""
    if world_size > MOST_RANKS:
        raise Damaged(f"{RESULTS} has more than {MOST_RANKS} ranks")
    for name in PER_RANK:
        if results.get(name) is not None:
            _check_per_rank(name, results[name], world_size)
    row: dict[str, Any] = {}
    for name, value in _flat(results, world_size):
        if len(row) > MOST_NAMES + 3 * world_size * len(PER_RANK):
            raise Damaged(f"{RESULTS} has more than {MOST_NAMES} names")
        top = name.partition(".")[0]
        if name not in OURS and top not in IDENTITY_READ:
            row[name] = value
    for name in FIGURES_READ:
        if isinstance(row.get(name), str | bool):
            raise Damaged(f"{RESULTS} has {name} that is no number")
    if not isinstance(row.get("exact"), bool | None):
        raise Damaged(f"{RESULTS} has exact that is neither true nor false")
    if not isinstance(row.get("resumed_from"), str | None):
        raise Damaged(f"{RESULTS} has resumed_from that is no folder")
    for name in ("kernel", "transport", "throttle"):  # what `auto` came to, if it says so
        if (chosen := word(row.pop(name, None))) is not None:
            row[name] = chosen
    row["reason"] = word(row.get("reason"))
    return row | _hardware(results) | _command(results)


def _check_per_rank(name: str, values: Any, world_size: int) -> None:
    if not isinstance(values, list) or len(values) != world_size:
        raise Damaged(f"{RESULTS} has {name} that is no list of {world_size}, one per rank")
    for value in values:
        measured = number(value)
        if value is not None and (measured is None or not 0 <= measured < LARGEST):
            raise Damaged(f"{RESULTS} has {name} that are not all numbers of at least 0")


def _flat(
    values: dict[str, Any], world_size: int, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Yield (column, scalar) of nested results. Lists count only at the top, with one entry per rank."""
    for key, value in values.items():
        name = plain(key)[:100]
        if isinstance(value, dict):
            if depth < MOST_DEPTH:
                yield from _flat(value, 0, f"{prefix}{name}.", depth + 1)
        elif not isinstance(value, list):
            yield prefix + name, _scalar(value)
        elif len(value) == world_size and not name.endswith("_iterations"):
            ranks = {f"{name}.{rank}": entry for rank, entry in enumerate(value)}
            yield from _flat(ranks, 0, prefix, depth + 1)


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)[:MOST_TEXT]
    if value is None or isinstance(value, bool):
        return value
    return value if isinstance(value, int) and abs(value) < 2**53 else number(value)


def _machine(results: dict[str, Any], name: str) -> Any:
    """Return a fact about the machine from the results; None if they do not have it."""
    found: Any = results
    for key in ("environment", "machine", name):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _hardware(results: dict[str, Any]) -> dict[str, Any]:
    gpus, cpu = _machine(results, "gpus"), _machine(results, "cpu")
    names = gpus if isinstance(gpus, list) and gpus else [cpu]
    if not all(isinstance(name, str) for name in names) or len(names) > MOST_RANKS:
        return {}
    counted = {name: names.count(name) for name in dict.fromkeys(names)}
    text = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counted.items())
    return {"hardware": plain(text)[:MOST_TEXT]}


def _command(results: dict[str, Any]) -> dict[str, Any]:
    """Return the command as text that a shell accepts."""
    environment = results.get("environment")
    command = environment.get("command") if isinstance(environment, dict) else None
    if not isinstance(command, list) or not command or not all(isinstance(each, str) for each in command):
        return {}
    program, *arguments = command
    return {"environment.command": plain(f"{program} {shlex.join(arguments)}")[:MOST_TEXT]}
