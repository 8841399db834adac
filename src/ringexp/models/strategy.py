"""FMS models on a ring, asked for the FMS way: `get_model(..., distributed_strategy="ring", block_lens=...)`.

model = get_model("llama", "micro", distributed_strategy="ring", block_lens=[600, 424])
logits = model(ids)     # every rank passes the whole prompt and gets the whole result
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from fms.distributed.strategy import DistributedStrategy
from fms.models import get_model as fms_get_model
from torch import nn

from ringexp.errors import UserError
from ringexp.kernels import get_kernel
from ringexp.models.attention_op import ATTN_NAME
from ringexp.models.facts import check_supported, head_dim_of
from ringexp.models.rotary import fuse_rotary
from ringexp.planning import Plan, make_plan
from ringexp.ring.clock import NoClock
from ringexp.ring.prefill import RingContext
from ringexp.ring.transport import Transport, make_transport

FMS_STRATEGIES = (None, "none", "tp", "mp", "fsdp", "hsdp", "ddp")


class RingAttentionStrategy(DistributedStrategy):
    """Sequence parallelism: rank i holds `block_lens[i]` tokens. Modules stay whole on every rank."""

    def __init__(
        self,
        block_lens: Sequence[int],
        group: dist.ProcessGroup | None = None,
        layout: str = "contiguous",
        from_meta: bool = False,
    ) -> None:
        super().__init__(from_meta)
        world_size = dist.get_world_size(group) if dist.is_initialized() else 1
        if len(block_lens) != world_size:
            raise UserError(f"block_lens={list(block_lens)} needs one length for each of {world_size} ranks")
        self.block_lens = list(block_lens)
        self.group = group
        self.plan: Plan = make_plan(sum(block_lens), self.block_lens, layout)
        self.rank = dist.get_rank(group) if dist.is_initialized() else 0

    def _distribute_module(self, module: nn.Module, final_layers: bool = False) -> nn.Module:
        return module

    def _distribute_layer(self, block: nn.Module, layer: int) -> nn.Module:
        return block

    def positions(self, device: torch.device) -> torch.Tensor:
        """Global positions of this rank's tokens, [L]."""
        return torch.tensor(self.plan.q_shards[self.rank].positions(), device=device)

    def shard_input(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, ...] -> this rank's [B, L, ...]."""
        if x.shape[1] != self.plan.seq_len:
            raise UserError(
                f"block_lens add up to {self.plan.seq_len} tokens, but the input has {x.shape[1]}"
            )
        return x[:, self.positions(x.device)]

    def gather_output(self, local: torch.Tensor) -> torch.Tensor:
        """This rank's [B, L, ...] -> [B, S, ...] on every rank."""
        full = local.new_empty((local.shape[0], self.plan.seq_len, *local.shape[2:]))
        for rank, shard in enumerate(self.plan.q_shards):
            part = local.new_empty((local.shape[0], shard.num_tokens, *local.shape[2:]))
            if rank == self.rank:
                part.copy_(local)
            if dist.is_initialized():
                source = dist.get_global_rank(self.group, rank) if self.group else rank
                dist.broadcast(part, source, self.group)
            full[:, torch.tensor(shard.positions(), device=local.device)] = part
        return full


class RingModel(nn.Module):
    """An FMS causal language model whose prompt is spread over the ranks of a `RingAttentionStrategy`."""

    def __init__(self, model: nn.Module, strategy: RingAttentionStrategy, kernel: str = "auto") -> None:
        super().__init__()
        check_supported(model, strategy.plan.seq_len)
        fuse_rotary(model)
        self.model = model
        self.distributed_strategy = strategy
        self._kernel_name = kernel
        self._transport: Transport | None = None

    def forward(self, x: torch.Tensor, *, last_n_tokens: int = 0) -> torch.Tensor:
        """Logits of the prompt x [B, S]: [B, S, V], or of its last token with last_n_tokens=1, [B, 1, V]."""
        strategy = self.distributed_strategy
        if last_n_tokens not in (0, 1):
            raise UserError(f"last_n_tokens={last_n_tokens} must be 0 (all logits) or 1 (the last token's)")
        device = x.device
        dtype = next(self.model.parameters()).dtype
        if self._transport is None:
            self._transport = make_transport(
                "nccl" if device.type == "cuda" else "gloo", device, strategy.group
            )
        ring = RingContext(
            plan=strategy.plan,
            rank=strategy.rank,
            transport=self._transport,
            kernel=get_kernel(self._kernel_name, device, dtype, head_dim_of(self.model)),
            clock=NoClock(),
        )
        positions = strategy.positions(device).expand(x.shape[0], -1)
        local = self.model(
            strategy.shard_input(x),
            position_ids=positions,
            last_n_tokens=last_n_tokens,
            attn_name=ATTN_NAME,
            ring=ring,
        )
        if not last_n_tokens:
            return strategy.gather_output(local)
        owner = strategy.plan.owner_of_last
        local = local.contiguous()
        dist.broadcast(
            local, dist.get_global_rank(strategy.group, owner) if strategy.group else owner, strategy.group
        )
        return local


def get_model(
    architecture: str,
    variant: str | None = None,
    *,
    distributed_strategy: str | None = None,
    block_lens: Sequence[int] | None = None,
    layout: str = "contiguous",
    group: dist.ProcessGroup | None = None,
    kernel: str = "auto",
    **kwargs: Any,
) -> nn.Module:
    """FMS's `get_model`, which also knows `distributed_strategy="ring"` with `block_lens`, one a rank.

    All other arguments go to FMS. For the ring the weights of rank 0 are broadcast, so random ones agree.
    Raises UserError for a strategy nobody has (FMS itself ignores those) and for block_lens that do not fit.
    """
    if distributed_strategy != "ring":
        if distributed_strategy not in FMS_STRATEGIES:
            known = ", ".join(str(name) for name in FMS_STRATEGIES if name)
            raise UserError(f"distributed_strategy={distributed_strategy} is unknown; use ring, {known}")
        if block_lens is not None:
            raise UserError("block_lens goes with distributed_strategy=ring")
        return fms_get_model(
            architecture, variant, distributed_strategy=distributed_strategy, group=group, **kwargs
        )
    if block_lens is None:
        raise UserError('distributed_strategy="ring" needs block_lens, the token count of every rank')
    strategy = RingAttentionStrategy(block_lens, group, layout)
    model = fms_get_model(architecture, variant, distributed_strategy="none", **kwargs)
    broadcast_weights(model, group)
    return RingModel(model.eval(), strategy, kernel)


def broadcast_weights(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Give every rank rank 0's parameters and buffers."""
    if not dist.is_initialized():
        return
    source = dist.get_global_rank(group, 0) if group else 0
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, source, group)
