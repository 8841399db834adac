"""The layout of results.json: the description of a run, which every status has, and checks for reading."""

from __future__ import annotations

import math
import shlex
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from ringexp.config import Config
from ringexp.models.registry import model_of
from ringexp.stored import NOT_FINITE, an_object
from ringexp.tracking.metrics import RunResult

SCHEMA_VERSION = 2
"""The version of results.json. A file that names no version is of version 1."""

STATUSES = ("planned", "complete", "failed", "interrupted")


def described(config: Config, key: str | None, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a run, so that its results.json can be understood alone.

    Args:
        config: the run's settings.
        key: its key in the index of complete runs.
        environment: `environment.environment` of the run.
    """
    drift = asdict(config.hetero.drift) if config.hetero.drift else None
    return {
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "model": config.model.name,
        "shape": model_of(config.model).speed_key,
        "dtype": config.model.dtype,
        "batch_size": config.model.batch_size,
        "seq_len": config.seq_len,
        "prompt_lengths": config.prompt_lengths,
        "percentages": list(config.hetero.percentages),
        "drift": drift,
        "partitioner": config.partitioner.name,
        "layout": config.layout.name,
        "split": config.split,
        "kernel": config.kernel.name,
        "transport": config.transport.name,
        "throttle": config.hetero.throttle,
        "seed": config.seed,
        "command": command_text(environment["command"]),
        "versions": environment["versions"],
        "environment": dict(environment),
    }


def command_text(command: list[str]) -> str:
    """Return a command as text that a shell accepts. The program may consist of several words."""
    program, *arguments = command or [""]
    return f"{program} {shlex.join(arguments)}".strip()


def check_results(value: Any) -> dict[str, Any]:
    """Return the content of a results.json. Raises ValueError if it cannot be one."""
    results = an_object(value, "the content")
    if results.get("status") not in STATUSES:
        raise ValueError(f"status={results.get('status')!r} is none of {', '.join(STATUSES)}")
    return results


def check_complete(value: Any) -> dict[str, Any] | None:
    """Return the content of a results.json if it has a whole, right result; None if the run came to nothing.

    Raises ValueError if a figure is missing or has the wrong type, or if times are not above 0.
    """
    results = check_results(value)
    if results["status"] != "complete" or results.get("exact") is False:
        return None
    lost = an_object(results.get(NOT_FINITE, {}), NOT_FINITE)
    hints = _hints()
    for item in fields(RunResult):
        needed = item.default is MISSING and item.default_factory is MISSING
        if needed and item.name not in results:
            raise ValueError(f"{item.name} is missing")
        if item.name in results and item.name not in lost and not fits(results[item.name], hints[item.name]):
            raise ValueError(f"{item.name}={results[item.name]!r:.60} is not of its type")
    for name in ("latency_ms_median", "latency_ms_back_to_back"):
        if not results[name] > 0:
            raise ValueError(f"{name}={results[name]} must be above 0")
    return results


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(RunResult)


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a parsed JSON value has the type of a dataclass's field."""
    kind = get_origin(hint)
    if hint is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(fits(value, each) for each in get_args(hint))
    if kind is list:
        return isinstance(value, list) and all(fits(each, get_args(hint)[0]) for each in value)
    if kind is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is type(None):
        return value is None
    return isinstance(value, dict)  # a dataclass
