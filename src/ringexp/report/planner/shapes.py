"""Shapes of models that the planner's page offers."""

from __future__ import annotations

from dataclasses import dataclass


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


SHAPES = (
    Shape("attention_mha_4096", num_kv_heads=32),
    Shape("attention_gqa_4096"),
    Shape("ring_mha_4096", emb_dim=0, num_kv_heads=32),
    Shape("ring_gqa_4096", emb_dim=0),
    Shape("attention_tiny", emb_dim=256, num_heads=4, num_kv_heads=2, head_dim=64, itemsize=4),
    Shape("llama3_8b", layers=32, ffn_dim=14336),
    Shape("granite_8b", layers=40, ffn_dim=12800),
    Shape("mistral_7b", layers=32, ffn_dim=14336),
    Shape("mixtral_8x7b", layers=32, ffn_dim=2 * 14336),
)
"""Under the names of the model configs."""
