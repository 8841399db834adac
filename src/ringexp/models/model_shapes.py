"""The shapes of models: what a token and a query-key pair take of a layer. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ringexp.choices import did_you_mean
from ringexp.config import CONF_DIR, AttentionModelConfig, FmsModelConfig, ModelConfig
from ringexp.errors import UserError
from ringexp.planning import MemoryNeed, attention_token_bytes, rotation_bytes

ITEMSIZE = {"float32": 4, "float64": 8}
"""Bytes of a number that is not of 16 bits."""


@dataclass(frozen=True)
class ModelShape:
    """One layer, `layers` of which follow each other; the model's head, for one position, is left out.

    hidden_dim: width of the gated feed-forward part, 0 for none; experts: how many there are of it.
    """

    layers: int = 1
    emb_dim: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    hidden_dim: int = 0
    experts: int = 1
    experts_a_token: int = 1
    projections: bool = True
    causal: bool = True
    batch_size: int = 1
    itemsize: int = 2

    @property
    def linear_weights(self) -> int:
        """Of a layer, those that one token meets."""
        return self._attention_weights + self.experts_a_token * self._feed_forward_weights + self._gates

    @property
    def stored_weights(self) -> int:
        """Of a layer, all of them."""
        return self._attention_weights + self.experts * self._feed_forward_weights + self._gates

    @property
    def token_flops(self) -> int:
        """Of the linear layers, for a token of every sequence of the batch."""
        return 2 * self.batch_size * self.linear_weights

    @property
    def pair_flops(self) -> int:
        """Of one query-key pair over all heads: 2 D for the score, 2 D for the value."""
        return 4 * self.batch_size * self.num_heads * self.head_dim

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of a token in one layer: what a hop carries."""
        return 2 * self.batch_size * self.num_kv_heads * self.head_dim * self.itemsize

    @property
    def merged_token_bytes(self) -> int:
        """What merging a block reads and writes: the output so far, in float32."""
        return 2 * 4 * self.batch_size * self.num_heads * self.head_dim

    @property
    def memory(self) -> MemoryNeed:
        """What a rank needs, as the workloads themselves say (`Workload.memory`)."""
        x_bytes = self.emb_dim * self.itemsize
        attention = attention_token_bytes(self.num_heads, self.num_kv_heads, self.head_dim, self.itemsize)
        if self.hidden_dim:
            layer = max(attention, 2 * self.itemsize * 2 * self.hidden_dim)
            prompt_token, own_token = 8 * self.batch_size, 2 * 8 + 3 * x_bytes + layer
        else:
            prompt_token, own_token = x_bytes * self.batch_size, 2 * x_bytes + attention
        return MemoryNeed(
            fixed=self.layers * self.stored_weights * self.itemsize,
            prompt_token=prompt_token + rotation_bytes(self.head_dim),
            own_token=own_token * self.batch_size,
            kv_token=self.kv_token_bytes,
        )

    @property
    def _attention_weights(self) -> int:
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        return self.emb_dim * heads * self.head_dim if self.projections else 0

    @property
    def _feed_forward_weights(self) -> int:
        return 3 * self.emb_dim * self.hidden_dim

    @property
    def _gates(self) -> int:
        return self.emb_dim * self.experts if self.experts > 1 else 0


WHOLE_MODELS = {
    "llama3_8b": ModelShape(layers=32, num_kv_heads=8, hidden_dim=14336),
    "granite_8b": ModelShape(layers=40, num_kv_heads=8, hidden_dim=12800),
    "mistral_7b": ModelShape(layers=32, num_kv_heads=8, hidden_dim=14336),
    "qwen3_8b": ModelShape(layers=36, num_kv_heads=8, hidden_dim=12288),
    "mixtral_8x7b": ModelShape(layers=32, num_kv_heads=8, hidden_dim=14336, experts=8, experts_a_token=2),
}
"""Of conf/model's whole models."""


def model_shape(name: str) -> ModelShape:
    """Of a choice of conf/model. Raises UserError for one that is not known here."""
    if name in WHOLE_MODELS:
        return WHOLE_MODELS[name]
    config = attention_config(name)
    if config is None:
        known = [*WHOLE_MODELS, "attention_mha_4096", "attention_gqa_4096", "ring_mha_4096", "ring_gqa_4096"]
        raise UserError(
            f"model {name} has no shape here; choose one of {', '.join(known)}{did_you_mean(name, known)}"
        )
    return _attention_shape(config)


def shape_of_config(model: ModelConfig) -> ModelShape | None:
    """Return the shape of a configured model; None for a whole model whose shape is not known here."""
    if isinstance(model, AttentionModelConfig):
        return _attention_shape(model)
    whole = WHOLE_MODELS.get(model.name)
    return (
        replace(whole, batch_size=model.batch_size, itemsize=ITEMSIZE.get(model.dtype, 2)) if whole else None
    )


def _attention_shape(model: AttentionModelConfig) -> ModelShape:
    return ModelShape(
        emb_dim=model.emb_dim,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        projections=model.projections,
        causal=model.causal,
        batch_size=model.batch_size,
        itemsize=ITEMSIZE.get(model.dtype, 2),
    )


def is_stock(model: FmsModelConfig) -> bool:
    """Tell whether a whole model is one of conf/model and has the same FMS model as the file there."""
    written = _written(model.name)
    settings = ("architecture", "variant", "overrides")
    stock = {"architecture": "llama", "variant": "micro", "overrides": {}} | written
    return bool(written) and all(getattr(model, name) == stock[name] for name in settings)


def attention_config(name: str) -> AttentionModelConfig | None:
    """conf/model's attention module of that name; None if there is none."""
    written = _written(name)
    if not written:
        return None
    schema, *_ = written.pop("defaults")
    return AttentionModelConfig(**written) if "attention_model" in str(schema) else None


def _written(name: str) -> dict[str, Any]:
    """Return the settings in the conf/model file of that name; an empty dict if there is no such file."""
    from omegaconf import OmegaConf

    path = CONF_DIR / "model" / f"{name}.yaml"
    if not path.is_file():
        return {}
    written = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(written, dict)
    return {str(key): value for key, value in written.items()}
