"""Shapes of models that the planner's page offers."""

from __future__ import annotations

from dataclasses import dataclass

from ringexp.models.model_shapes import WHOLE_MODELS, model_shape


@dataclass(frozen=True)
class Shape:
    """What decides a layer's work. emb_dim=0: attention without projections; ffn_dim=0: no feed-forward part.

    ffn_dim: of the gated part with three matrices that one token meets, all its experts together. itemsize:
    bytes of a number in the cache.
    """

    name: str
    layers: int = 1
    batch: int = 1
    emb_dim: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    ffn_dim: int = 0
    itemsize: int = 2


def offered(name: str) -> Shape:
    """The shape under the name of a model config."""
    shape = model_shape(name)
    return Shape(
        name,
        shape.layers,
        shape.batch_size,
        shape.emb_dim if shape.projections else 0,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        shape.experts_a_token * shape.hidden_dim,
        shape.itemsize,
    )


SHAPES = tuple(
    offered(name)
    for name in (
        "attention_mha_4096",
        "attention_gqa_4096",
        "ring_mha_4096",
        "ring_gqa_4096",
        "attention_tiny",
        *WHOLE_MODELS,
    )
)
