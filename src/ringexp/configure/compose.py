"""From what Hydra composed to a validated `Config`, and the names of all settings."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from ringexp.choices import did_you_mean
from ringexp.config import Config
from ringexp.configure.prompts import with_prompt
from ringexp.configure.validate import validate
from ringexp.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def from_hydra(cfg: DictConfig) -> Config:
    """Return the composed OmegaConf config as a validated `Config`, with the length of its prompts.

    Raises UserError for a key that no dataclass has (added with `+key=value`) and for what `validate` finds.
    """
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    _reject_unknown_keys(OmegaConf.to_container(cfg, resolve=True), config, prefix="")
    validate(config)
    return with_prompt(config)


def grouped(config: Config, group: str) -> Config:
    """Return the config with this wandb group, unless the config or the environment already has a group."""
    tracker = config.tracker
    group = tracker.group or os.environ.get("WANDB_RUN_GROUP") or group
    return replace(config, tracker=replace(tracker, group=group))


def known_keys(config: DataclassInstance | None = None, prefix: str = "") -> list[str]:
    """Return the dotted name of every setting."""
    config = Config() if config is None else config
    keys: list[str] = []
    for item in fields(config):
        keys.append(prefix + item.name)
        value = getattr(config, item.name)
        if is_dataclass(value) and not isinstance(value, type):
            keys += known_keys(value, f"{prefix}{item.name}.")
    return keys


def unknown_key(key: str, names: Iterable[str]) -> str:
    """Return the one line for a setting that does not exist."""
    return f"there is no setting {key}{did_you_mean(key, names)} (python -m ringexp --help lists them)"


def _reject_unknown_keys(data: object, config: DataclassInstance, prefix: str) -> None:
    assert isinstance(data, dict)
    names = [item.name for item in fields(config)]
    for key, value in data.items():
        if key not in names:
            raise UserError(unknown_key(prefix + key, [prefix + name for name in names]))
        nested = getattr(config, key)
        if is_dataclass(nested) and not isinstance(nested, type) and isinstance(value, dict):
            _reject_unknown_keys(value, nested, f"{prefix}{key}.")
