"""Configs read back from the plain values that `dataclasses.asdict` makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ringexp.config import Config, ModelConfig
from ringexp.models.registry import config_from


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Return the `Config` that `dataclasses.asdict` turned into `values`; ranks get theirs as JSON."""
    return replace(_nested(Config, values), model=config_from(values["model"]))


def _nested(kind: type, values: Mapping[str, Any]) -> Any:
    """Build a dataclass and the dataclasses in its fields; the model's own class is for the caller."""
    settings = {}
    for item in fields(kind):
        default = item.default_factory() if callable(item.default_factory) else None
        is_nested = is_dataclass(default) and not isinstance(default, ModelConfig)
        settings[item.name] = _nested(type(default), values[item.name]) if is_nested else values[item.name]
    return kind(**settings)
