"""Shapes of models as the planner's page has them."""

from __future__ import annotations

from functools import cache

from ringexp.configure.named_models import named_shape
from ringexp.models.shape import ModelShape

OFFERED = (
    "attention_mha_4096",
    "attention_gqa_4096",
    "ring_mha_4096",
    "ring_gqa_4096",
    "attention_tiny",
    "llama3_8b",
    "granite_8b",
    "mistral_7b",
    "qwen3_8b",
    "mixtral_8x7b",
)
"""The models of conf/model that the page offers."""

PageShape = dict[str, str | int]
"""A shape as state.js reads it.

emb_dim is 0 for attention without projections. ffn_dim is the width of the gated feed-forward part, of three
matrices, that computes one token: all its experts together, and 0 without such a part.
"""


def page_shape(name: str, shape: ModelShape) -> PageShape:
    """Return what the page needs of a shape."""
    return {
        "name": name,
        "layers": shape.layers,
        "batch": shape.batch_size,
        "emb_dim": shape.emb_dim if shape.projections else 0,
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "ffn_dim": shape.experts_per_token * shape.hidden_dim,
        "itemsize": shape.itemsize,
    }


@cache
def offered_shapes() -> dict[str, ModelShape]:
    """Return the shapes of the models that the page offers, by name."""
    return {name: named_shape(name) for name in OFFERED}
