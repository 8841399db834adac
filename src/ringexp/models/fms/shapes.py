"""Shapes of FMS models that are known without importing FMS, which takes seconds. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ringexp.config import FmsModelConfig
from ringexp.models.shape import ITEMSIZE, ModelShape


@dataclass(frozen=True)
class KnownModel:
    """An FMS model by the settings that name it, and its shape."""

    architecture: str
    variant: str
    shape: ModelShape
    overrides: Mapping[str, object] = field(default_factory=dict)


def _micro(
    hidden_dim: int, num_kv_heads: int = 2, experts: int = 1, experts_per_token: int = 1
) -> ModelShape:
    return ModelShape(5, 192, 4, num_kv_heads, 48, hidden_dim, experts, experts_per_token)


MICRO = {"src_vocab_size": 256, "emb_dim": 192, "nheads": 4, "kvheads": 2, "head_dim": 48, "nlayers": 5}
MICRO_EXPERTS = {
    "src_vocab_size": 256,
    "dim": 192,
    "nheads": 4,
    "kvheads": 2,
    "hidden_dim": 512,
    "num_experts": 4,
    "nlayers": 5,
}
QWEN3_8B = {
    "emb_dim": 4096,
    "nlayers": 36,
    "nheads": 32,
    "kvheads": 8,
    "head_dim": 128,
    "hidden_grow_factor": 3.0,
    "tie_heads": False,
}
KNOWN = (
    KnownModel("llama", "3-8b", ModelShape(32, num_kv_heads=8, hidden_dim=14336)),
    KnownModel("granite", "8b", ModelShape(40, num_kv_heads=8, hidden_dim=12800)),
    KnownModel("mistral", "7b", ModelShape(32, num_kv_heads=8, hidden_dim=14336)),
    KnownModel("qwen3", "4b", ModelShape(36, num_kv_heads=8, hidden_dim=12288), QWEN3_8B),
    KnownModel(
        "mixtral",
        "8x7b",
        ModelShape(32, num_kv_heads=8, hidden_dim=14336, experts=8, experts_per_token=2),
    ),
    KnownModel("llama", "micro", _micro(512, num_kv_heads=4)),
    KnownModel("granite", "8b", _micro(768), MICRO),
    KnownModel("mistral", "7b", _micro(768), MICRO),
    KnownModel("qwen3", "0.6b", _micro(768), MICRO),
    KnownModel("mixtral", "8x7b", _micro(512, experts=4, experts_per_token=2), MICRO_EXPERTS),
)
"""The models of conf/model, with batch size 1 and 16-bit numbers."""


def known_shape(config: FmsModelConfig) -> ModelShape | None:
    """Return the shape of a model with random weights; None if FMS has to be asked for it."""
    named = (config.architecture, config.variant, config.overrides)
    for model in KNOWN:
        if not config.checkpoint and named == (model.architecture, model.variant, model.overrides):
            return replace(model.shape, batch_size=config.batch_size, itemsize=ITEMSIZE[config.dtype])
    return None
