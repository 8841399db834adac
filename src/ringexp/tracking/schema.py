"""The layout of results.json: the description of a run, which every status has, and the check of a result."""

from __future__ import annotations

import shlex
from dataclasses import asdict

from ringexp.config import Config
from ringexp.models.registry import model_of
from ringexp.stored import JsonObject, JsonValue
from ringexp.tracking.results import RunRecord, RunResult

SCHEMA_VERSION = 3
"""The version of results.json. A file that names no version is of version 1."""


def described(config: Config, key: str | None, environment: JsonObject) -> dict[str, object]:
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
        "command": command_text(environment),
        "versions": environment["versions"],
        "environment": dict(environment),
    }


def command_text(environment: JsonObject) -> str:
    """Return a run's command as text that a shell accepts. The program may consist of several words."""
    command = environment.get("command")
    program, *arguments = map(str, command if isinstance(command, list) and command else [""])
    return f"{program} {shlex.join(arguments)}".strip()


def complete_record(value: JsonValue) -> RunRecord | None:
    """Return the record of a run with a whole, right result; None if the run came to nothing.

    Raises ValueError if a figure is missing or has the wrong type, or if times are not above 0.
    """
    record = RunRecord.from_json(value)
    if not record.is_complete or record.exact is False:
        return None
    result = RunResult.from_json(record.content, whole=True)
    for name, time_ms in (
        ("latency_ms_median", result.latency_ms_median),
        ("latency_ms_back_to_back", result.latency_ms_back_to_back),
    ):
        if not time_ms > 0:
            raise ValueError(f"{name}={time_ms} must be above 0")
    return record
