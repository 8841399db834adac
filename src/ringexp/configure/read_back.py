"""Read configs back from the plain values that `dataclasses.asdict` makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from ringexp.config import Config, ModelConfig
from ringexp.models.registry import config_from

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def config_from_dict(values: Mapping[str, object]) -> Config:
    """Return the `Config` that `dataclasses.asdict` turned into `values`; ranks get theirs as JSON."""
    model = values["model"]
    assert isinstance(model, Mapping)
    return replace(_filled(Config(), values), model=config_from(model))


def _filled(settings: Settings, values: Mapping[str, object]) -> Settings:
    """Return the settings with these values; the model's own class is for the caller."""
    changes: dict[str, object] = {}
    for item in fields(settings):
        nested, value = getattr(settings, item.name), values[item.name]
        if is_dataclass(nested) and not isinstance(nested, type | ModelConfig):
            assert isinstance(value, Mapping)
            value = _filled(nested, value)
        changes[item.name] = value
    return replace(settings, **changes)
