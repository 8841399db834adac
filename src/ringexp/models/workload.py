"""Workloads: what a run computes, cut by positions, with the work it takes and a single-process reference.

A workload is the same object on every rank: equal weights, inputs by global position. `forward` computes one
rank's part through the ring, `reference` the whole on one process with FMS's own attention.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.distributed as dist
from fms.models import get_model as fms_get_model
from fms.modules.attention import MultiHeadAttention
from fms.modules.positions import RotaryEmbedding
from torch import nn

from ringexp.config import AttentionModelConfig, FmsModelConfig, ModelConfig
from ringexp.errors import UserError
from ringexp.models import facts
from ringexp.models.attention_op import ATTN_NAME
from ringexp.models.shapes import shape_of
from ringexp.models.strategy import broadcast_weights
from ringexp.planning import Plan
from ringexp.ring.prefill import RingContext

REFERENCE_OP = {True: "sdpa_causal", False: "sdpa_bidirectional"}


@dataclass(frozen=True)
class LocalInputs:
    """One rank's part of the prompt: x [B, L, ...] and its global positions [B, L]."""

    x: torch.Tensor
    positions: torch.Tensor


class Workload(Protocol):
    """What the experiment needs of a workload; `shape` names everything that decides its speed."""

    causal: bool
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def num_units(self) -> int:
        """How many `unit`s follow each other in `forward`."""
        ...

    @property
    def shape(self) -> str: ...

    def inputs(self, seq_len: int, seed: int) -> torch.Tensor:
        """The whole prompt, equal on all ranks: [B, S, ...]."""
        ...

    def forward(self, local: LocalInputs, ring: RingContext) -> torch.Tensor:
        """This rank's output; what it means is the workload's own."""
        ...

    def unit(self, local: LocalInputs, ring: RingContext) -> Callable[[], torch.Tensor]:
        """The repeating piece of `forward` that a speed measurement runs."""
        ...

    def reference(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The whole output on this process alone, computed in `dtype`."""
        ...

    def part_of(self, reference: torch.Tensor, plan: Plan, rank: int) -> torch.Tensor | None:
        """What `forward` of `rank` should have given; None if its output does not count."""
        ...

    def flops(self, plan: Plan, rank: int) -> float:
        """Matmul FLOPs of `forward` on `rank`."""
        ...

    def unit_flops(self, plan: Plan, rank: int) -> float:
        """Matmul FLOPs of `unit` on `rank`."""
        ...


def local_inputs(x: torch.Tensor, plan: Plan, rank: int) -> LocalInputs:
    """Cut rank `rank`'s queries out of the whole prompt."""
    positions = torch.tensor(plan.q_shards[rank].positions(), dtype=torch.long, device=x.device)
    return LocalInputs(x[:, positions].contiguous(), positions.expand(x.shape[0], -1))


class AttentionWorkload:
    """One FMS attention module: QKV projection, RoPE, ring, output projection; x is [B, S, E]."""

    num_units = 1

    def __init__(self, config: AttentionModelConfig, seq_len: int, device: torch.device, seed: int) -> None:
        self._config = config
        self.causal = config.causal
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.dtype = getattr(torch, config.dtype)
        self._device = device
        torch.manual_seed(seed)
        module = MultiHeadAttention(
            config.emb_dim,
            config.head_dim,
            config.head_dim,
            config.num_heads,
            config.num_kv_heads,
            position_encoder=RotaryEmbedding(config.head_dim, max_seq_len=seq_len),
        )
        module.reset_parameters()
        self._module = module.to(device, self.dtype).eval()
        broadcast_weights(self._module)

    @property
    def shape(self) -> str:
        return shape_of(self._config)

    def inputs(self, seq_len: int, seed: int) -> torch.Tensor:
        x = torch.empty(
            self._config.batch_size, seq_len, self._config.emb_dim, device=self._device, dtype=self.dtype
        )
        if not dist.is_initialized() or dist.get_rank() == 0:
            x.normal_(generator=torch.Generator(self._device).manual_seed(seed))
        if dist.is_initialized():
            dist.broadcast(x, 0)
        return x

    def forward(self, local: LocalInputs, ring: RingContext) -> torch.Tensor:
        return self._module(local.x, position_ids=local.positions, attn_name=ATTN_NAME, ring=ring)

    def unit(self, local: LocalInputs, ring: RingContext) -> Callable[[], torch.Tensor]:
        return lambda: self.forward(local, ring)

    def reference(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        module = copy.deepcopy(self._module).to(dtype)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        out, _ = module(  # with a cache FMS always knows which axis is which
            x.to(dtype), position_ids=positions, use_cache=True, attn_name=REFERENCE_OP[self.causal]
        )
        return out

    def part_of(self, reference: torch.Tensor, plan: Plan, rank: int) -> torch.Tensor | None:
        return reference[:, torch.tensor(plan.q_shards[rank].positions(), device=reference.device)]

    def flops(self, plan: Plan, rank: int) -> float:
        per_token = facts.linear_flops_per_token(self._module)
        per_pair = facts.attention_flops_per_pair(self._module)
        return self._config.batch_size * (per_token * plan.tokens[rank] + per_pair * plan.pairs(rank))

    unit_flops = flops


class FmsWorkload:
    """A whole FMS language model with random weights; the output is the logits of the last position."""

    causal = True

    def __init__(self, config: FmsModelConfig, seq_len: int, device: torch.device, seed: int) -> None:
        self._config = config
        self.dtype = getattr(torch, config.dtype)
        self._device = device
        torch.manual_seed(seed)
        overrides = {"max_expected_seq_len": seq_len, **config.overrides}
        try:
            model = fms_get_model(
                config.architecture,
                config.variant,
                device_type=device.type,
                data_type=self.dtype,
                distributed_strategy="none",
                **overrides,
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"model.architecture={config.architecture} model.variant={config.variant} "
                f"model.overrides={config.overrides}: FMS says {error}"
            ) from error
        known = sorted(vars(model.config))
        unknown = [name for name in config.overrides if name not in known]
        if unknown:  # FMS itself ignores them
            raise UserError(
                f"model.overrides.{unknown[0]} is no setting of FMS's model; it has {', '.join(known)}"
            )
        self._model = model.eval()
        facts.check_supported(self._model, seq_len)
        broadcast_weights(self._model)
        attention = facts.first_attention(self._model)
        self.num_heads, self.num_kv_heads = attention.nheads, attention.kvheads
        self.head_dim = attention.emb_kq_per_head

    @property
    def num_units(self) -> int:
        return len(self._layers)

    @cached_property
    def _layers(self) -> nn.ModuleList:
        base = self._model.get_submodule("base_model")
        layers = base.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def shape(self) -> str:
        return shape_of(self._config)

    def inputs(self, seq_len: int, seed: int) -> torch.Tensor:
        vocabulary = self._model.get_parameter("base_model.embedding.weight").shape[0]
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, vocabulary, (self._config.batch_size, seq_len), generator=generator)
        return ids.to(self._device)

    def forward(self, local: LocalInputs, ring: RingContext) -> torch.Tensor:
        return self._model(
            local.x, position_ids=local.positions, last_n_tokens=1, attn_name=ATTN_NAME, ring=ring
        )

    def unit(self, local: LocalInputs, ring: RingContext) -> Callable[[], torch.Tensor]:
        hidden = self._model.get_submodule("base_model.embedding")(local.x)
        layer = self._layers[0]
        return lambda: layer(hidden, position_ids=local.positions, attn_name=ATTN_NAME, ring=ring)

    def reference(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        model = self._model if dtype == self.dtype else copy.deepcopy(self._model).to(dtype)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        logits, _ = model(
            x, position_ids=positions, last_n_tokens=1, use_cache=True, attn_name=REFERENCE_OP[True]
        )
        return logits

    def part_of(self, reference: torch.Tensor, plan: Plan, rank: int) -> torch.Tensor | None:
        return reference if rank == plan.owner_of_last else None

    def flops(self, plan: Plan, rank: int) -> float:
        head = 2 * self._config.batch_size * self._model.get_parameter("head.weight").numel()
        return head + len(self._layers) * self.unit_flops(plan, rank)

    def unit_flops(self, plan: Plan, rank: int) -> float:
        layer = self._layers[0]
        per_token = facts.linear_flops_per_token(layer)
        per_pair = facts.attention_flops_per_pair(facts.first_attention(layer))
        return self._config.batch_size * (per_token * plan.tokens[rank] + per_pair * plan.pairs(rank))


def make_workload(config: ModelConfig, seq_len: int, device: torch.device, seed: int) -> Workload:
    """The workload of a model config, with random weights that are equal on all ranks."""
    if isinstance(config, AttentionModelConfig):
        return AttentionWorkload(config, seq_len, device, seed)
    assert isinstance(config, FmsModelConfig)
    return FmsWorkload(config, seq_len, device, seed)
