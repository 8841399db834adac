"""Check what types cannot express about a config's values, in one place. No check looks at the machine.

`preflight` checks what depends on devices, memory and installed packages.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringexp.choices import KERNELS, LAYOUTS, PARTITIONERS, THROTTLES, TRANSPORTS, did_you_mean
from ringexp.config import (
    CALIBRATION_MODES,
    DEVICES,
    DTYPES,
    SPLITS,
    TRACKER_MODES,
    Config,
)
from ringexp.configure.ranges import check_ranges
from ringexp.configure.register import folder_name
from ringexp.errors import UserError
from ringexp.hetero.drift import validate_drift
from ringexp.hetero.profiles import validate_percentages
from ringexp.models.registry import model_of
from ringexp.planning import validate_memory_limit

INTERPOLATIONS = ("pchip", "linear")


def validate(config: Config) -> None:
    """Raise UserError, naming the setting, for the first value that no run could use."""
    check_ranges(config)
    folder_name(config.label)
    folder_name(config.model.name, "model.name")
    _check_choices(config)
    validate_percentages(config.hetero.percentages)
    validate_memory_limit(config.memory_limit_gib, config.world_size)
    _check_drift(config)
    _check_partitioner(config)
    _at_least("calibration.max_seconds", config.calibration.max_seconds, config.calibration.min_seconds)
    model = model_of(config.model)
    if config.decode_tokens and not model.generates_text:
        raise UserError(f"decode_tokens is for whole models; model={config.model.name} is one layer")
    if config.decode_tokens:
        _at_least("decode_tokens", config.decode_tokens, 3)  # one by prefill, one to warm up
    model.check_settings(config.world_size, config.split)


def _check_choices(config: Config) -> None:
    """Check every setting that is one of several words."""
    PARTITIONERS.check(config.partitioner.name, "partitioner.name")
    LAYOUTS.check(config.layout.name, "layout.name")
    KERNELS.check(config.kernel.name, "kernel.name")
    TRANSPORTS.check(config.transport.name, "transport.name")
    THROTTLES.check(config.hetero.throttle)
    _one_of("split", config.split, SPLITS)
    if config.tracker.mode is not None:
        _one_of("tracker.mode", config.tracker.mode, TRACKER_MODES)
    _one_of("calibration.mode", config.calibration.mode, CALIBRATION_MODES)
    _one_of("device", config.device, DEVICES)
    _one_of("model.dtype", config.model.dtype, DTYPES)
    _one_of("partitioner.lut.interpolation", config.partitioner.lut.interpolation, INTERPOLATIONS)


def _check_drift(config: Config) -> None:
    drift = config.hetero.drift
    validate_drift(drift, config.hetero.percentages, config.hetero.throttle)
    if drift and drift.at >= config.repeats and not config.dry_run:
        raise UserError(
            f"hetero.drift.at={drift.at} comes after all repeats={config.repeats} prompts: "
            "use more repeats or an earlier prompt"
        )


def _check_partitioner(config: Config) -> None:
    """Check that the partitioner gets what it splits by."""
    partitioner, throttle = PARTITIONERS[config.partitioner.name], THROTTLES.get(config.hetero.throttle)
    if config.split == "kv" and partitioner.needs_costs:
        raise UserError(
            f"partitioner={partitioner.name} balances what ranks compute, which split=kv leaves even; "
            "use another one"
        )
    if throttle and throttle.measures_each_device and partitioner.needs_percentages:
        others = [spec.name for spec in PARTITIONERS if not spec.needs_percentages]
        raise UserError(
            f"partitioner={partitioner.name} splits by percentage, and hetero=measured has none; "
            f"use {', '.join(others[:-1])} or {others[-1]}"
        )


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        hint = did_you_mean(value, allowed)
        raise UserError(f"{key}={value} is unknown; choose one of {', '.join(allowed)}{hint}")


def _at_least(key: str, value: float, minimum: float) -> None:
    if not value >= minimum:
        raise UserError(f"{key}={value} must be at least {minimum}")
