"""A checkpoint's config.json: each key is honoured, known to be harmless, or refused by name.

Hugging Face's model classes say what a key does and what is meant if it is missing; FMS's say what can be
computed. A key that is in none of the lists might change the computation, so it is refused. Free of torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ringexp.errors import UserError
from ringexp.models.checkpoints.keys import IGNORED, SWITCHED_OFF, Family, family_of
from ringexp.models.checkpoints.values import ConfigValues

ACTIVATIONS = {
    "silu": "swish",
    "swish": "swish",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
    "relu": "relu",
    "mish": "mish",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
"""Hugging Face's names of activations, and FMS's names of the same functions."""

LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor")
ROPE_KEYS = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    *LLAMA3_KEYS,
}

SPECIAL = {
    "quantization_config": "quantized weights are not computed; use a checkpoint that is not quantized",
    "auto_map": "code of a checkpoint's own is not run; use one of Hugging Face's classes",
}
"""Reasons for refusing some keys, besides that they are not computed."""


@dataclass(frozen=True)
class CheckpointConfig:
    """The model of a checkpoint, in Hugging Face's meaning, with its defaults filled in.

    Attributes:
        activation: FMS's name.
        max_position: the context that the model was made for.
        llama3: the four settings of Llama 3's rope scaling; None if the rope is not scaled.
        window: the shortest sliding window that any layer attends to; None without one.
        attention_multiplier: Granite's, as are the other multipliers and logits_scaling.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: str
    attention_bias: bool
    mlp_bias: bool
    tied: bool
    max_position: int
    rope_theta: float
    llama3: Mapping[str, float] | None
    window: int | None
    attention_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    num_experts: int = 0
    experts_per_token: int = 0

    def check_length(self, folder: object, seq_len: int) -> None:
        """Raise UserError if a context of `seq_len` tokens is longer than the sliding window."""
        if self.window is not None and self.window < seq_len:
            raise UserError(
                f"checkpoint {folder} attends to a sliding window of {self.window} tokens, which FMS does "
                f"not compute; use a context of up to {self.window} tokens instead of {seq_len}"
            )

    @property
    def longest(self) -> int:
        """Return the longest context that can be computed, which is the default."""
        return self.max_position if self.window is None else min(self.window, self.max_position)


def parse_config(folder: object, raw: Mapping[str, object]) -> CheckpointConfig:
    """Read the settings of a config.json.

    Raises UserError for a family, a key or a value that is not known to be computed as Hugging Face does.
    """
    family = family_of(folder, raw)
    values = ConfigValues(folder, raw, family.defaults)
    _check_keys(values, family)
    heads = values.count("num_attention_heads")
    hidden = values.count("hidden_size")
    kv_heads = values.count("num_key_value_heads", if_null=heads)
    if heads % kv_heads:
        raise values.refusal("num_key_value_heads", f"it has to divide num_attention_heads={heads}")
    experts = values.count("num_local_experts") if family.experts else 0
    per_token = values.count("num_experts_per_tok") if family.experts else 0
    if per_token > experts:
        raise values.refusal("num_experts_per_tok", f"there are num_local_experts={experts}")
    multipliers = {key: values.number(key) for key in family.multipliers}
    theta, llama3 = _rope(values, family)
    return CheckpointConfig(
        family=family,
        vocab_size=values.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=values.count("intermediate_size"),
        num_layers=values.count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(values, family, hidden, heads),
        norm_eps=values.number("rms_norm_eps"),
        activation=_activation(values, family),
        attention_bias=family.attention_bias and values.flag("attention_bias"),
        mlp_bias=family.mlp_bias and values.flag("mlp_bias"),
        tied=values.flag("tie_word_embeddings"),
        max_position=values.count("max_position_embeddings"),
        rope_theta=theta,
        llama3=llama3,
        window=_window(values, family),
        num_experts=experts,
        experts_per_token=per_token,
        **multipliers,
    )


def _check_keys(values: ConfigValues, family: Family) -> None:
    """Raise UserError for a key that no list has, and for a feature that is on but not computed."""
    for key, value in values.raw.items():
        if key in family.read or key in IGNORED:
            continue
        if key not in SWITCHED_OFF:
            raise values.refusal(key, "the key is unknown to ringexp and might change the computation")
        harmless = SWITCHED_OFF[key]
        if key in SPECIAL and value is not None:
            raise values.refusal(key, SPECIAL[key])
        if not any(type(value) is type(off) and value == off for off in harmless):
            allowed = " or ".join(json.dumps(off) for off in harmless)
            raise values.refusal(key, f"FMS's {family.model_type} computes {allowed} alone")


def _head_dim(values: ConfigValues, family: Family, hidden: int, heads: int) -> int:
    head_dim = values.count("head_dim", if_null=hidden // heads or None)
    if not family.any_head_dim and head_dim * heads != hidden:
        key = "num_attention_heads" if values.get("head_dim") is None else "head_dim"
        reason = (
            f"FMS's {family.model_type} has heads of hidden_size / num_attention_heads = {hidden / heads:g}"
        )
        raise values.refusal(key, reason)
    if head_dim % 2:
        raise values.refusal("head_dim", f"the rope needs an even number, not {head_dim}")
    return head_dim


def _activation(values: ConfigValues, family: Family) -> str:
    allowed = family.activations or tuple(ACTIVATIONS)
    name = values.get("hidden_act")
    if not isinstance(name, str) or name not in allowed:
        raise values.refusal("hidden_act", f"FMS's {family.model_type} computes {', '.join(allowed)}")
    return ACTIVATIONS[name]


def _window(values: ConfigValues, family: Family) -> int | None:
    """Return the window that some layer has, by the rules of Hugging Face's class of the family."""
    layers = values.count("num_hidden_layers")
    types = values.get("layer_types") or []
    if not isinstance(types, list) or (values.get("layer_types") is not None and len(types) != layers):
        raise values.refusal("layer_types", f"it needs one entry for each of {layers} layers")
    allowed = ["full_attention"] + ["sliding_attention"] * family.mixed_layers
    if any(kind not in allowed for kind in types):
        raise values.refusal("layer_types", f"FMS's {family.model_type} takes {' and '.join(allowed)}")
    if not family.windows:
        return None
    window = values.count("sliding_window", if_null=0) or None
    if not family.mixed_layers:
        return window
    slides = "sliding_attention" in types if types else values.count("max_window_layers", least=0) < layers
    if values.flag("use_sliding_window"):
        return window if slides else None
    if types and slides:
        raise values.refusal("layer_types", "sliding_attention needs use_sliding_window=true")
    return None


def _rope(values: ConfigValues, family: Family) -> tuple[float, dict[str, float] | None]:
    """Return the rope's base and, if it is scaled as Llama 3's, the settings of that.

    Old configs have rope_theta and rope_scaling beside each other, new ones rope_parameters with both.
    """
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(key) or {}
    if not isinstance(rope, dict):
        raise values.refusal(key, "it has to be a table of settings")
    length = "original_max_position_embeddings"
    inner = ConfigValues(values.folder, rope, {length: values.get("max_position_embeddings")}, f"{key}.")
    for name in rope:
        if name not in ROPE_KEYS:
            raise inner.refusal(name, f"FMS's {family.model_type} does not compute it")
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise inner.refusal("partial_rotary_factor", f"FMS's {family.model_type} turns whole heads")
    theta = (inner if "rope_theta" in rope else values).number("rope_theta")
    name = "rope_type" if "rope_type" in rope else "type"
    kind = rope.get(name, "default")
    if kind == "default":
        return theta, None
    if kind != "llama3" or not family.scales_rope:
        allowed = "default and llama3" if family.scales_rope else "default alone"
        raise inner.refusal(name, f"of rope scalings FMS's {family.model_type} computes {allowed}")
    settings: dict[str, float] = {name: inner.number(name) for name in LLAMA3_KEYS}
    if settings["high_freq_factor"] <= settings["low_freq_factor"]:
        raise inner.refusal("high_freq_factor", "it has to be above low_freq_factor")
    settings[length] = inner.count(length)
    if values.get(length) not in (None, settings[length]):
        raise values.refusal(length, f"the scaled rope has {settings[length]}")
    return theta, settings
