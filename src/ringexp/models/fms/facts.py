"""Facts about an FMS module that the ring needs: shapes, work, and whether it can be sharded at all."""

from __future__ import annotations

from collections.abc import Iterator

from fms.modules.attention import MultiHeadAttention
from fms.modules.feedforward import MOEFeedForward
from fms.modules.positions import RotaryEmbedding
from torch import nn

from ringexp.errors import UserError

FAMILIES = {
    "llama": "LLaMA",
    "granite": "Granite",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen3": "Qwen3",
}
"""FMS architectures that are tested on the ring, and the names of their classes."""


def attentions(module: nn.Module) -> Iterator[MultiHeadAttention]:
    """Every attention module inside `module`, itself included."""
    return (part for part in module.modules() if isinstance(part, MultiHeadAttention))


def first_attention(module: nn.Module) -> MultiHeadAttention:
    found = next(attentions(module), None)
    if found is None:
        raise UserError(f"{type(module).__name__} has no FMS MultiHeadAttention, so it cannot join the ring")
    return found


def linear_flops_per_token(module: nn.Module) -> int:
    """Matmul FLOPs of the linear layers for one token: 2 x weights, of experts those that one token meets."""
    flops = sum(2 * part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
    for part in module.modules():
        if isinstance(part, MOEFeedForward):
            experts = part.cond_ffn
            weights = experts.w13.numel() + experts.w2.numel()
            flops += 2 * weights * part.num_activated_experts // experts.num_experts
    return flops


def weight_bytes(module: nn.Module) -> int:
    return sum(part.numel() * part.itemsize for part in module.parameters())


def feed_forward_token_bytes(layer: nn.Module, emb_dim: int, itemsize: int) -> int:
    """Bytes of one token at the peak of a layer's feed-forward part: gates, values, activation and product.

    They are as much again as what its linear layers put out on the way.
    """
    inner = {id(part) for attention in attentions(layer) for part in attention.modules()}
    widths = (
        part.out_features for part in layer.modules() if isinstance(part, nn.Linear) and id(part) not in inner
    )
    return 2 * itemsize * sum(width for width in widths if width != emb_dim)


def attention_flops_per_pair(attention: MultiHeadAttention) -> int:
    """FLOPs of one query-key pair over all heads: 2 D for the score, 2 D for the value."""
    return 2 * attention.nheads * (attention.emb_kq_per_head + attention.emb_v_per_head)


def check_supported(model: nn.Module, seq_len: int) -> None:
    """Raises UserError for what sharding by position would silently get wrong."""
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
