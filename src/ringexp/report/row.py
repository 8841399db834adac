"""One run as a row of the table: its identity, how it ended, and its figures, each checked first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ringexp.printable import plain
from ringexp.report.folder import Damaged, read_config, read_record, result_of
from ringexp.report.identity import MOST_RANKS, identity
from ringexp.report.values import LARGEST, MOST_TEXT, Cell, number
from ringexp.stored import JsonObject, JsonValue
from ringexp.tracking.files import RESULTS
from ringexp.tracking.results import COMPLETE, FAILED, INTERRUPTED, PLANNED, RunRecord, RunResult
from ringexp.tracking.schema import command_text

__all__ = ["COMPLETE", "FAILED", "INTERRUPTED", "NOT_RUN", "read_row"]

NOT_RUN = "not run"

FIGURES_READ: dict[str, Callable[[RunResult], float | None]] = {
    "latency_ms_median": lambda result: result.latency_ms_median,
    "latency_ms_spread": lambda result: result.latency_ms_spread,
    "latency_ms_back_to_back": lambda result: result.latency_ms_back_to_back,
    "latency_ms_predicted": lambda result: result.latency_ms_predicted,
    "speedup_over_even": lambda result: result.speedup_over_even,
    "capacity_efficiency": lambda result: result.capacity_efficiency,
    "slowdown": lambda result: result.slowdown,
    "efficiency": lambda result: result.efficiency,
    "tflops": lambda result: result.tflops,
    "error_max_abs": lambda result: result.error_max_abs,
    "error_single_max_abs": lambda result: result.error_single_max_abs,
    "references.single_ms": lambda result: result.references.single_ms,
    "references.single_back_to_back_ms": lambda result: result.references.single_back_to_back_ms,
    "adaptation.total_ms": lambda result: result.adaptation.total_ms if result.adaptation else None,
    "hop_gbps": lambda result: result.hop_gbps,
    "hop_latency_ms": lambda result: result.hop_latency_ms,
}
"""The columns of numbers that the report computes with, and where each comes from."""

PER_RANK: dict[str, Callable[[RunResult], Sequence[float]]] = {
    "tokens": lambda result: result.tokens,
    "kv_tokens": lambda result: result.kv_tokens,
    "shares": lambda result: result.shares,
    "speeds": lambda result: result.speeds,
    "busy_ms": lambda result: result.busy_ms,
    "linear_ms": lambda result: result.linear_ms,
    "attention_ms": lambda result: result.attention_ms,
    "wait_ms": lambda result: result.wait_ms,
    "comm_ms": lambda result: result.comm_ms,
    "idle_ms": lambda result: result.idle_ms,
    "peak_memory_bytes": lambda result: result.peak_memory_bytes,
}
"""Lists with a number per rank, which is at least 0; each rank's number is a column, such as `busy_ms.0`."""

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

OURS = ("run", "folder", "status", "profile", "drift", "pattern", "hardware", "settings", "split")
OURS += ("slow_percent", "fast_percent", "world_size", "kernel_asked", "prediction_error")
OURS += ("speedup_over_contiguous_even", "speedup_over_single", "capacity_efficiency_back_to_back")
OURS += ("base_ms", "over_even", "latency_ms_median_even", "latency_ms_median_balanced")
OURS += ("adaptation.total_ms.static",)
"""Columns that no results.json can set."""

MOST_NAMES = 2_000
MOST_DEPTH = 5


def read_row(folder: Path) -> dict[str, Cell]:
    """Return the row of the run in `folder`; if its files are damaged, that of a run that failed."""
    row: dict[str, Cell] = {}
    try:
        config = read_config(folder) or {}
        row = identity(config, {})
        record = read_record(folder)
        row = identity(config, record.content if record else {})
        result = result_of(record) if record else None
        if record and result:
            row |= _columns(record, result, int(row["world_size"] or 0))
        status, reason = _ending(record, result)
    except Damaged as error:
        status, reason = FAILED, f"damaged ({error})"
    return row | {"run": plain(folder.name), "folder": str(folder), "status": status, "reason": reason}


def _ending(record: RunRecord | None, result: RunResult | None) -> tuple[str, str]:
    """Return the status of a run, and the reason why the run is not complete."""
    if record is None or result is None:
        return NOT_RUN, "it was not begun"
    if record.status == PLANNED:
        return FAILED, "it did not finish"
    reason = plain(record.reason or "")[:MOST_TEXT]
    if not record.is_complete:
        return record.status, reason
    if result.exact is False:
        return FAILED, f"its output is wrong by {number(result.error_max_abs)}"
    if not (number(result.latency_ms_median) or 0) > 0:
        raise Damaged(f"{RESULTS} is complete without a latency above 0")
    return COMPLETE, reason


def _columns(record: RunRecord, result: RunResult, world_size: int) -> dict[str, Cell]:
    """Return the columns that results.json gives. Raises Damaged for figures that cannot be right."""
    if world_size > MOST_RANKS:
        raise Damaged(f"{RESULTS} has more than {MOST_RANKS} ranks")
    for name, values_of in PER_RANK.items():
        _check_per_rank(name, values_of(result), world_size)
    row: dict[str, Cell] = {}
    for name, value in _flat(record.content, world_size):
        if len(row) > MOST_NAMES + 3 * world_size * len(PER_RANK):
            raise Damaged(f"{RESULTS} has more than {MOST_NAMES} names")
        top = name.partition(".")[0]
        if name not in OURS and top not in IDENTITY_READ:
            row[name] = value
    figures = {name: number(value_of(result)) for name, value_of in FIGURES_READ.items()}
    row |= {name: value for name, value in figures.items() if value is not None}
    if record.content.get("resumed_from") is not None and record.resumed_from is None:
        raise Damaged(f"{RESULTS} has resumed_from that is no folder")
    chosen = {"kernel": result.kernel, "transport": result.transport, "throttle": result.throttle}
    for name, choice in chosen.items():  # what `auto` came to, if the file says so
        row.pop(name, None)
        row |= {name: plain(choice)[:MOST_TEXT]} if choice else {}
    return row | _hardware(record.content) | _command(record.content)


def _check_per_rank(name: str, values: Sequence[float], world_size: int) -> None:
    if values and len(values) != world_size:
        raise Damaged(f"{RESULTS} has {name} that is no list of {world_size}, one per rank")
    if any(value < 0 or value >= LARGEST for value in values):
        raise Damaged(f"{RESULTS} has {name} that are not all numbers of at least 0")


def _flat(
    values: JsonObject, world_size: int, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Cell]]:
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


def _scalar(value: JsonValue) -> Cell:
    if isinstance(value, str):
        return plain(value)[:MOST_TEXT]
    if value is None or isinstance(value, bool):
        return value
    return value if isinstance(value, int) and abs(value) < 2**53 else number(value)


def _machine(content: JsonObject, name: str) -> JsonValue:
    """Return a fact about the machine from results.json; None if the file does not have it."""
    value: JsonValue = content
    for key in ("environment", "machine", name):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _hardware(content: JsonObject) -> dict[str, Cell]:
    gpus, cpu = _machine(content, "gpus"), _machine(content, "cpu")
    devices = gpus if isinstance(gpus, list) and gpus else [cpu]
    names = [name for name in devices if isinstance(name, str)]
    if len(names) < len(devices) or len(names) > MOST_RANKS:
        return {}
    counted = {name: names.count(name) for name in dict.fromkeys(names)}
    text = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counted.items())
    return {"hardware": plain(text)[:MOST_TEXT]}


def _command(content: JsonObject) -> dict[str, Cell]:
    environment = content.get("environment")
    command = environment.get("command") if isinstance(environment, dict) else None
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        return {}
    return {"environment.command": plain(command_text({"command": command}))[:MOST_TEXT]}
