"""Facts about an FMS module that the ring needs: its shape, and whether it can be sharded at all."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from fms.modules.attention import MultiHeadAttention
from fms.modules.feedforward import GatedLinearUnit, MOEFeedForward
from fms.modules.positions import RotaryEmbedding
from torch import nn

from ringexp.errors import UserError
from ringexp.models.shape import ModelShape

FAMILIES = {
    "llama": "LLaMA",
    "granite": "Granite",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen3": "Qwen3",
}
"""FMS architectures that are tested on the ring, and the names of their classes."""


def attentions(module: nn.Module) -> Iterator[MultiHeadAttention]:
    """Yield every attention module inside `module`, itself included."""
    return (part for part in module.modules() if isinstance(part, MultiHeadAttention))


def first_attention(module: nn.Module) -> MultiHeadAttention:
    """Return the first attention module inside `module`. Raises UserError if there is none."""
    attention = next(attentions(module), None)
    if attention is None:
        raise UserError(f"{type(module).__name__} has no FMS MultiHeadAttention, so it cannot join the ring")
    return attention


def layers(model: nn.Module) -> nn.ModuleList:
    """Return the equal layers of an FMS language model."""
    stack = model.get_submodule("base_model.layers")
    assert isinstance(stack, nn.ModuleList)
    return stack


def shape_of(layers: nn.ModuleList, batch_size: int, dtype: torch.dtype) -> ModelShape:
    """Return the shape of a causal model that consists of these equal layers."""
    attention, hidden_dim, experts, experts_per_token = first_attention(layers), 0, 1, 1
    for part in layers[0].modules():
        if isinstance(part, GatedLinearUnit):
            hidden_dim = part.hidden_dim
        elif isinstance(part, MOEFeedForward):
            hidden_dim, experts_per_token = part.intermediate_size, part.num_activated_experts
            experts = part.cond_ffn.num_experts
    return ModelShape(
        layers=len(layers),
        emb_dim=attention.emb_dim,
        num_heads=attention.nheads,
        num_kv_heads=attention.kvheads,
        head_dim=attention.emb_kq_per_head,
        hidden_dim=hidden_dim,
        experts=experts,
        experts_per_token=experts_per_token,
        batch_size=batch_size,
        itemsize=dtype.itemsize,
    )


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of all parameters."""
    return sum(part.numel() * part.itemsize for part in module.parameters())


def check_supported(model: nn.Module, seq_len: int) -> None:
    """Raise UserError for a model that sharding by position would silently get wrong."""
    family = type(model).__name__
    if family not in FAMILIES.values():
        raise UserError(f"FMS's {family} is not proved on the ring; use one of {', '.join(FAMILIES)}")
    for attention in attentions(model):
        rope = attention.position_encoder
        if isinstance(rope, RotaryEmbedding) and rope.rope_type == "ntk":
            raise UserError(
                "NTK rope scaling depends on the length each rank sees, so the ring cannot use it; "
                "build the model with ntk_scaling=False"
            )
        if attention.has_sinks:
            raise UserError("attention sinks are not supported by the ring")
    longest = getattr(getattr(model, "config", None), "max_expected_seq_len", None)
    if longest is not None and seq_len > longest:
        raise UserError(
            f"seq_len={seq_len} is beyond the model's max_expected_seq_len={longest}; "
            f"build it with max_expected_seq_len={seq_len}"
        )
