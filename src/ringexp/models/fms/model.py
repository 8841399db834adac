"""Describe a configured FMS model before it is built. torch and FMS are imported when a method needs them."""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar

from ringexp.config import FmsModelConfig, ModelConfig
from ringexp.errors import UserError
from ringexp.models.checkpoints.folder import check_folder, read_config
from ringexp.models.fms.shapes import known_shape
from ringexp.models.shape import ModelShape
from ringexp.planning import MemoryNeed
from ringexp.planning.masks import CAUSAL, Mask


class FmsModel:
    """A whole FMS language model, with random weights or those of a Hugging Face folder."""

    config_class: ClassVar[type[ModelConfig]] = FmsModelConfig
    generates_text: ClassVar[bool] = True
    mask: Mask = CAUSAL

    def __init__(self, config: ModelConfig) -> None:
        assert isinstance(config, FmsModelConfig)
        self._config = config

    @property
    def speed_key(self) -> str:
        config = self._config
        if config.checkpoint:
            settings = json.dumps(read_config(config.checkpoint), sort_keys=True)
            digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
            return f"checkpoint-{digest}-b{config.batch_size}-layer-{config.dtype}"
        overrides = "".join(f"-{key}{value}" for key, value in sorted(config.overrides.items()))
        return f"{config.architecture}-{config.variant}{overrides}-b{config.batch_size}-layer-{config.dtype}"

    @property
    def shape(self) -> ModelShape | None:
        return known_shape(self._config)

    @property
    def checkpoint(self) -> str | None:
        return self._config.checkpoint or None

    def check_settings(self, world_size: int, split: str) -> None:
        """Raise UserError for settings of whole models that do not go together."""
        config = self._config
        if config.chunk_tokens is not None and config.chunk_tokens < world_size:
            raise UserError(f"model.chunk_tokens={config.chunk_tokens} must be at least {world_size}")
        if config.checkpoint == "":
            raise UserError("model=checkpoint needs model.checkpoint=DIR, a Hugging Face folder")
        if config.checkpoint and config.overrides:
            raise UserError("model.overrides goes with random weights, not with model.checkpoint")
        if split == "kv":
            raise UserError(
                "split=kv splits keys/values apart from queries and is for attention workloads only; "
                f"model={config.name} needs split=tokens"
            )

    def check_before_start(self, seq_len: int, decode_tokens: int) -> MemoryNeed | None:
        """Check a checkpoint's files, or that FMS can build the model.

        Returns:
            The least memory per rank: that of the weights at least, or None for a checkpoint.

        Raises:
            UserError: the checkpoint or the settings cannot be used.
        """
        config = self._config
        if config.checkpoint:
            check_folder(config.checkpoint, seq_len + decode_tokens)
            return None
        if self.shape:
            return self.shape.memory
        from ringexp.models.fms.outline import weight_bytes

        return MemoryNeed(fixed=weight_bytes(config, seq_len), prompt_token=0, own_token=1, kv_token=0)
