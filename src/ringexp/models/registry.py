"""The kinds of models, by the config's `model.kind`. Free of torch until a workload is made.

A kind is a class that describes a configured model before it is built, and a function that builds it as a
`Workload`. To add a model library, write a folder with both and add one line to `KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from ringexp.choices import did_you_mean
from ringexp.config import ModelConfig
from ringexp.errors import UserError
from ringexp.models.shape import ModelShape
from ringexp.planning import MemoryNeed
from ringexp.planning.masks import Mask

if TYPE_CHECKING:
    import torch

    from ringexp.models.workload import Workload


class Kind(NamedTuple):
    """The names of the parts of a kind, as "module:attribute". A module is imported when it is used.

    Attributes:
        model: the class of a `ConfiguredModel`; its module imports neither torch nor the library.
        build: the function that `registry.build` calls.
    """

    model: str
    build: str


KINDS = {
    "attention": Kind(
        "ringexp.models.attention.model:AttentionModel", "ringexp.models.attention.workload:build"
    ),
    "fms": Kind("ringexp.models.fms.model:FmsModel", "ringexp.models.fms.workload:FmsWorkload"),
}


class ConfiguredModel(Protocol):
    """A model config together with what its library knows of it. Reading it builds nothing."""

    config_class: ClassVar[type[ModelConfig]]
    """The settings of this kind, which files in conf/model name as /schema/KIND_model."""
    generates_text: ClassVar[bool]
    """True if models of this kind are whole language models: they read text and decode tokens."""

    def __init__(self, config: ModelConfig) -> None: ...

    @property
    def mask(self) -> Mask:
        """Return which keys a query may see."""
        ...

    @property
    def speed_key(self) -> str:
        """Name everything that decides the model's speed. Calibration rows and results carry this name."""
        ...

    @property
    def shape(self) -> ModelShape | None:
        """Return the model's shape; None if it is known only once the model is built."""
        ...

    @property
    def checkpoint(self) -> str | None:
        """Return the folder that the weights and the tokenizer come from; None for random weights."""
        ...

    def check_settings(self, world_size: int, split: str) -> None:
        """Check the model's settings against each other, the number of ranks and the run's `split`.

        Raises:
            UserError: a setting cannot work with another one.
        """
        ...

    def check_before_start(self, seq_len: int, decode_tokens: int) -> MemoryNeed | None:
        """Check that the model can be built for this prompt, without building it.

        Returns:
            The least memory per rank, or None if it is not known.

        Raises:
            UserError: the model cannot be built.
        """
        ...


def model_of(config: ModelConfig) -> ConfiguredModel:
    """Return what the library of a model config knows of it. Raises UserError for an unknown kind."""
    return kind_named(config.kind)(config)


def build(config: ModelConfig, seq_len: int, device: torch.device, seed: int) -> Workload:
    """Build a model; all ranks call this together.

    Args:
        config: the model.
        seq_len: tokens of the longest context.
        device: this rank's.
        seed: of random weights, which are equal on all ranks.
    """
    return _load(KINDS[config.kind].build)(config, seq_len, device, seed)


@cache
def kind_named(kind: str) -> type[ConfiguredModel]:
    """Return the class of a kind of models. Raises UserError for an unknown one."""
    if kind not in KINDS:
        raise UserError(
            f"model.kind={kind} is unknown; use one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
        )
    return _load(KINDS[kind].model)


def _load(target: str) -> Any:
    """Return what "module:attribute" names."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def config_from(settings: Mapping[str, object]) -> ModelConfig:
    """Return the model config whose fields `dataclasses.asdict` gave, such as those of a stored run.

    Raises:
        UserError: the kind is unknown.
        TypeError: a setting is not one of that kind's.
    """
    return kind_named(str(settings.get("kind"))).config_class(**settings)  # pyright: ignore[reportArgumentType]
