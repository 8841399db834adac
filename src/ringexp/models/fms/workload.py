"""A whole FMS language model as a workload."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from fms.models import get_model as fms_get_model
from torch import nn

from ringexp.config import FmsModelConfig
from ringexp.models.checkpoints.load import load_checkpoint
from ringexp.models.fms import facts
from ringexp.models.fms.attention_op import ATTN_NAME
from ringexp.models.fms.generation import prefill_with_cache
from ringexp.models.fms.model import FmsModel
from ringexp.models.fms.outline import outline
from ringexp.models.fms.rotary import fuse_rotary
from ringexp.models.fms.text_model import FmsTextModel
from ringexp.models.inputs import LocalInputs
from ringexp.models.weights import broadcast_weights
from ringexp.planning import MemoryNeed, Plan
from ringexp.ring.context import RingContext


class FmsWorkload:
    """A whole FMS language model; the output is the logits of the last position."""

    def __init__(self, config: FmsModelConfig, seq_len: int, device: torch.device, seed: int) -> None:
        self._device = device
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.speed_key = FmsModel(config).speed_key
        if config.checkpoint:
            model = load_checkpoint(config.checkpoint, device, self.dtype, seq_len)
        else:
            model = _random_model(config, seq_len, device, seed)
        self._model = model.eval()
        facts.check_supported(self._model, seq_len)
        fuse_rotary(self._model)
        broadcast_weights(self._model)
        self._layers = facts.layers(self._model)
        self.shape = facts.shape_of(self._layers, config.batch_size, self.dtype)
        self.text_model = FmsTextModel(self._model, config.checkpoint or None, device, self.dtype)

    @property
    def memory(self) -> MemoryNeed:
        return replace(self.shape.memory, fixed=facts.weight_bytes(self._model))

    def inputs(self, seq_len: int, seed: int) -> torch.Tensor:
        """Return random token ids [B, S]."""
        vocabulary = self._model.get_parameter("base_model.embedding.weight").shape[0]
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, vocabulary, (self.shape.batch_size, seq_len), generator=generator)
        return ids.to(self._device)

    def forward(self, local: LocalInputs, ring: RingContext) -> torch.Tensor:
        """Return the logits of this rank's last token, [B, 1, V]."""
        if ring.plan.chunks:
            return prefill_with_cache(self._model, local.x, local.positions, ring)[0]
        return self._model(
            local.x, position_ids=local.positions, last_n_tokens=1, attn_name=ATTN_NAME, ring=ring
        )

    def unit(self, local: LocalInputs, ring: RingContext) -> Callable[[], torch.Tensor]:
        """Return the computation of the first layer, on the embedded tokens."""
        hidden = self._model.get_submodule("base_model.embedding")(local.x)
        layer = self._layers[0]
        return lambda: layer(hidden, position_ids=local.positions, attn_name=ATTN_NAME, ring=ring)

    def reference(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Compute the logits of the last position, [B, 1, V], with FMS's own attention."""
        model = self._model if dtype == self.dtype else copy.deepcopy(self._model).to(dtype)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        logits, _ = model(x, position_ids=positions, last_n_tokens=1, use_cache=True, attn_name="sdpa_causal")
        return logits

    def part_of(self, reference: torch.Tensor, plan: Plan, rank: int) -> torch.Tensor | None:
        """Return the reference on the rank with the last position; None on every other rank."""
        return reference if rank == plan.owner_of_last else None

    def flops(self, plan: Plan, rank: int) -> float:
        """Count the operations of all layers on one rank, and those of the head for one position."""
        head = 2 * self.shape.batch_size * self._model.get_parameter("head.weight").numel()
        return head + self.shape.layers * self.shape.layer_flops(plan, rank)


def _random_model(config: FmsModelConfig, seq_len: int, device: torch.device, seed: int) -> nn.Module:
    """Build a model with random weights. Raise UserError for what `outline` refuses."""
    outline(config, seq_len)
    torch.manual_seed(seed)
    return fms_get_model(
        config.architecture,
        config.variant,
        device_type=device.type,
        data_type=getattr(torch, config.dtype),
        distributed_strategy="none",
        **{"max_expected_seq_len": seq_len, **config.overrides},
    )
