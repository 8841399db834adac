"""The models that conf/model names. Free of torch."""

from __future__ import annotations

from typing import cast

from ringexp.choices import did_you_mean
from ringexp.config import CONF_DIR, ModelConfig
from ringexp.errors import UserError
from ringexp.models.registry import config_from, model_of
from ringexp.models.shape import ModelShape


def named_model(name: str) -> ModelConfig:
    """Return the model config in the file of conf/model with this name. Raises UserError if there is none."""
    from omegaconf import OmegaConf

    path = CONF_DIR / "model" / f"{name}.yaml"
    if not path.is_file():
        raise _unknown(name)
    settings = cast("dict[str, object]", OmegaConf.to_container(OmegaConf.load(path)))
    schema, *_ = cast("list[str]", settings.pop("defaults"))
    kind = schema.removeprefix("/schema/").partition("_model")[0]
    return config_from({"kind": kind} | settings)


def named_shape(name: str) -> ModelShape:
    """Return the shape of a model of conf/model. Raises UserError if it is unknown until it is built."""
    shape = model_of(named_model(name)).shape
    if shape is None:
        raise _unknown(name)
    return shape


def _unknown(name: str) -> UserError:
    names = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))
    shaped_models = [other for other in names if model_of(named_model(other)).shape]
    return UserError(
        f"model {name} has no shape here; choose one of {', '.join(shaped_models)}"
        f"{did_you_mean(name, shaped_models)}"
    )
