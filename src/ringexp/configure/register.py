"""Tell Hydra, before it composes, about schemas, groups whose choices have no file, and resolvers."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from ringexp.choices import KERNELS, LAYOUTS, PARTITIONERS, TRANSPORTS
from ringexp.config import (
    CONF_DIR,
    Config,
    DriftConfig,
    FmsModelConfig,
    HeteroConfig,
    KernelConfig,
    LayoutConfig,
    PartitionerConfig,
    SlurmConfig,
    TrackerConfig,
    TransportConfig,
)
from ringexp.configure.prompts import tokens_of
from ringexp.errors import UserError
from ringexp.hetero.drift import drift_label
from ringexp.hetero.profiles import named_profiles
from ringexp.machine import default_device, gpu_count
from ringexp.models.registry import KINDS, kind_named
from ringexp.names import folder_part

SCHEMAS: dict[str, type] = {
    **{f"{kind}_model": kind_named(kind).config_class for kind in KINDS},
    "hetero": HeteroConfig,
    "partitioner": PartitionerConfig,
    "layout": LayoutConfig,
    "kernel": KernelConfig,
    "transport": TransportConfig,
    "tracker": TrackerConfig,
    "slurm": SlurmConfig,
}
"""Schema name -> dataclass; each file in conf/ names its schema in its defaults list."""


def register() -> None:
    """Make schemas, groups and resolvers known to Hydra."""
    store = ConfigStore.instance()
    # Hydra copies the whole store for every group that it lists, though `load` copies what it hands out.
    vars(store)["__deepcopy__"] = lambda memo: store
    store.store(name="ringexp_schema", node=Config)
    for name, node in SCHEMAS.items():
        store.store(group="schema", name=name, node=node)
    for name, percentages in named_profiles().items():
        if name != "none":  # conf/hetero/ has none and measured
            store.store(group="hetero", name=name, node=HeteroConfig(percentages=list(percentages)))
    for name in KERNELS.options:
        store.store(group="kernel", name=name, node=KernelConfig(name))
    for name in TRANSPORTS.options:
        store.store(group="transport", name=name, node=TransportConfig(name))
    for name in LAYOUTS.options:
        store.store(group="layout", name=name, node=LayoutConfig(name))
    for name in PARTITIONERS.names:
        if not (CONF_DIR / "partitioner" / f"{name}.yaml").exists():  # one that a plug-in adds
            store.store(group="partitioner", name=name, node=PartitionerConfig(name))
    _register_resolvers()


def _register_resolvers() -> None:
    """Make the functions that files in conf/ call known to OmegaConf."""

    def resolver(name: str, function: Callable[..., object]) -> None:
        # Cached, so that all jobs of a sweep see one value.
        OmegaConf.register_new_resolver(f"ringexp.{name}", function, replace=True, use_cache=True)

    resolver(
        "default_model", lambda: "attention_mha_4096" if default_device() == "cuda" else "attention_tiny"
    )
    resolver("full_speed", lambda device: [100.0] * (2 if device == "cpu" else gpu_count() or 2))
    resolver("profile", lambda p, drift=None: drift_label(list(p), DriftConfig(**drift) if drift else None))
    resolver("token", _random_token)
    resolver("folder", folder_name)
    resolver("unless_dry", lambda dry, folder, otherwise=None: otherwise if dry else folder)
    OmegaConf.register_new_resolver("ringexp.length", length_of, replace=True)


def length_of(seq_len: int, *, _root_: DictConfig) -> int:
    """Return the tokens of the composed run's longest prompt; `seq_len` if it has no prompts of its own."""
    names = ("prompt_file", "prompt_text", "prompt_lines", "prompt_lengths")
    settings = {name: OmegaConf.select(_root_, name) for name in names}
    if settings["prompt_lengths"] is not None:
        settings["prompt_lengths"] = list(settings["prompt_lengths"])
    model = FmsModelConfig(checkpoint=OmegaConf.select(_root_, "model.checkpoint"))
    return tokens_of(Config(model=model, seq_len=seq_len, **settings))


def folder_name(text: str, key: str = "label") -> str:
    """Return `text` as a part of a folder's name, shortened where it is too long.

    Raises UserError for text that leads to another folder or cannot be a name.
    """
    text = str(text)
    if not text.isprintable() or "/" in text:
        raise UserError(
            f"{key}={text!r} becomes part of a folder's name: use printable characters other than /"
        )
    return folder_part(text)


def _random_token() -> str:
    """Return three hex digits that tell two runs apart that start in the same second."""
    return secrets.token_hex(2)[:3]
