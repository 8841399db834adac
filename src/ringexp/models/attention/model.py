"""Describe a configured attention module before it is built. Importing this does not import torch."""

from __future__ import annotations

from typing import ClassVar

from ringexp.config import AttentionModelConfig, ModelConfig
from ringexp.errors import UserError
from ringexp.models.shape import ITEMSIZE, ModelShape
from ringexp.planning import MemoryNeed
from ringexp.planning.masks import Mask


class AttentionModel:
    """One attention layer: an FMS module, or the ring alone on random queries, keys and values."""

    config_class: ClassVar[type[ModelConfig]] = AttentionModelConfig
    generates_text: ClassVar[bool] = False
    checkpoint: None = None

    def __init__(self, config: ModelConfig) -> None:
        assert isinstance(config, AttentionModelConfig)
        self._config = config

    @property
    def mask(self) -> Mask:
        return Mask.of(self._config.causal)

    @property
    def speed_key(self) -> str:
        config = self._config
        width = f"e{config.emb_dim}" if config.projections else "bare"
        return (
            f"attention-b{config.batch_size}-{width}-h{config.num_heads}-kv{config.num_kv_heads}"
            f"-d{config.head_dim}-{self.mask}-{config.dtype}"
        )

    @property
    def shape(self) -> ModelShape:
        config = self._config
        return ModelShape(
            emb_dim=config.emb_dim,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            projections=config.projections,
            mask=self.mask,
            batch_size=config.batch_size,
            itemsize=ITEMSIZE[config.dtype],
        )

    def check_settings(self, world_size: int, split: str) -> None:
        """Raise UserError unless heads share keys and values evenly and can be rotated by RoPE."""
        config = self._config
        if config.num_heads % config.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads={config.num_kv_heads} must divide model.num_heads={config.num_heads}"
            )
        if config.head_dim % 2:
            raise UserError(f"model.head_dim={config.head_dim} must be even for RoPE")

    def check_before_start(self, seq_len: int, decode_tokens: int) -> MemoryNeed:
        """Return the memory per rank; every attention module can be built."""
        return self.shape.memory
