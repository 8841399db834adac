"""Workloads: what a run computes, cut by positions, with the work it takes and a single-process reference.

A workload is the same object on every rank: equal weights, inputs by global position. `forward` computes one
rank's part through the ring, `reference` the whole on one process, not by our code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn

from ringexp.config import AttentionModelConfig, FmsModelConfig, ModelConfig
from ringexp.planning import MemoryNeed, Plan
from ringexp.ring.context import RingContext
from ringexp.ring.groups import broadcast
from ringexp.ring.shards import positions, shard


@dataclass(frozen=True)
class LocalInputs:
    """One rank's part of the prompt: x [B, L, ...] and its positions [B, L], each sequence's own."""

    x: torch.Tensor
    positions: torch.Tensor


class Workload(Protocol):
    """What the experiment needs of a workload; `shape` names everything that decides its speed."""

    causal: bool
    only_attention: bool  # no linear layers
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

    @property
    def memory(self) -> MemoryNeed:
        """What `forward` needs of a rank's memory."""
        ...


def local_inputs(x: torch.Tensor, plan: Plan, rank: int) -> LocalInputs:
    """Cut rank `rank`'s queries out of the whole prompt."""
    slots = positions(plan, rank, x.device)
    return LocalInputs(shard(x, plan, rank), rope_positions(slots, plan.starts or [0] * x.shape[0]))


def rope_positions(slots: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
    """Positions [B, L] within sequences that begin at `starts`, for slots [L]; 0 where there is padding."""
    return (slots - torch.tensor(starts, device=slots.device).unsqueeze(1)).clamp(min=0)


def padded(prompts: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Token ids of prompts of any lengths as one batch [B, S], with zeros on the left of shorter ones."""
    longest = max(map(len, prompts))
    return torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)


def unpadded(x: torch.Tensor, plan: Plan) -> list[torch.Tensor]:
    """A whole prompt [B, S, ...] in parts that have no padding: as it is, or sequence by sequence."""
    if not plan.starts:
        return [x]
    return [x[index : index + 1, start:] for index, start in enumerate(plan.starts)]


def broadcast_weights(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Give every rank rank 0's parameters and buffers."""
    if not dist.is_initialized():
        return
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            broadcast(tensor, 0, group)


def make_workload(config: ModelConfig, seq_len: int, device: torch.device, seed: int) -> Workload:
    """The workload of a model config, with random weights that are equal on all ranks."""
    from ringexp.models.attention.workload import AttentionWorkload, BareAttentionWorkload
    from ringexp.models.fms.workload import FmsWorkload

    if isinstance(config, AttentionModelConfig):
        if config.projections:
            return AttentionWorkload(config, seq_len, device, seed)
        return BareAttentionWorkload(config, device)
    assert isinstance(config, FmsModelConfig)
    return FmsWorkload(config, seq_len, device, seed)
