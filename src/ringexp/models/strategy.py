"""FMS models on a ring, asked for the FMS way: `get_model(..., distributed_strategy="ring", block_lens=...)`.

model = get_model("llama", "micro", distributed_strategy="ring", block_lens=[600, 360])
logits = model(ids)     # every rank passes the whole prompt and gets the whole result
ids = generate(model, ids, max_new_tokens=64)   # of `generation`, or FMS's own with use_cache=True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from fms.distributed.strategy import DistributedStrategy
from fms.models import get_model as fms_get_model
from torch import nn

from ringexp.errors import UserError
from ringexp.kernels import DecodeKernel, Kernel, get_decode_kernel, get_kernel
from ringexp.models.attention_op import ATTN_NAME
from ringexp.models.cache import RingCache
from ringexp.models.checkpoint import from_pretrained
from ringexp.models.facts import check_supported, head_dim_of
from ringexp.models.generation import Decoder
from ringexp.models.rotary import fuse_rotary
from ringexp.models.workload import broadcast_weights, rope_positions
from ringexp.planning import Plan, make_plan
from ringexp.ring.clock import NoClock
from ringexp.ring.groups import broadcast, place_in, transport_of
from ringexp.ring.prefill import RingContext
from ringexp.ring.shards import positions, shard, unshard

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
        self.rank, world_size = place_in(group)
        if len(block_lens) != world_size:
            raise UserError(f"block_lens={list(block_lens)} needs one length for each of {world_size} ranks")
        if min(block_lens) < 1:
            raise UserError(f"block_lens={list(block_lens)} must give every rank a token")
        self.block_lens = list(block_lens)
        self.group = group
        self.plan: Plan = make_plan(sum(block_lens), self.block_lens, layout)

    def _distribute_module(self, module: nn.Module, final_layers: bool = False) -> nn.Module:
        return module

    def _distribute_layer(self, block: nn.Module, layer: int) -> nn.Module:
        return block

    def positions(self, device: torch.device) -> torch.Tensor:
        """Global positions of this rank's tokens, [L]."""
        return positions(self.plan, self.rank, device)

    def shard_input(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, ...] -> this rank's [B, L, ...]."""
        return shard(x, self.plan, self.rank)

    def gather_output(self, local: torch.Tensor) -> torch.Tensor:
        """This rank's [B, L, ...] -> [B, S, ...] on every rank."""
        return unshard(local, self.plan, self.group)


class RingModel(nn.Module):
    """An FMS causal language model whose prompt is spread over the ranks of a `RingAttentionStrategy`."""

    def __init__(
        self,
        model: nn.Module,
        strategy: RingAttentionStrategy,
        kernel: str = "auto",
        transport: str = "auto",
    ) -> None:
        super().__init__()
        check_supported(model, strategy.plan.seq_len)
        fuse_rotary(model)
        self.model = model
        self.distributed_strategy = strategy
        self._kernel_name, self._transport_name = kernel, transport
        self._kernels: tuple[Kernel, DecodeKernel] | None = None

    def forward(
        self,
        x: torch.Tensor,
        *,
        position_ids: torch.Tensor | None = None,
        past_key_value_states: RingCache | None = None,
        use_cache: bool = False,
        last_n_tokens: int = 0,
        new_tokens: int = 0,
        mask: torch.Tensor | None = None,
    ) -> Any:
        """Logits of the prompt x [B, S]: [B, S, V], or of its last token with last_n_tokens=1, [B, 1, V].

        With use_cache=True also the cache, which has room for `new_tokens` and grows if need be. With
        past_key_value_states, x [B, 1] is the token after those, and the result [B, 1, V] and the cache.
        Batches may be padded on the left, as `pad_input_ids` of FMS does: then position_ids [B, S] say where
        a prompt begins, and `mask`, which says the same, is not read.
        """
        if last_n_tokens not in (0, 1):
            raise UserError(f"last_n_tokens={last_n_tokens} must be 0 (all logits) or 1 (the last token's)")
        if mask is not None and position_ids is None:
            raise UserError("a padded batch needs position_ids, as FMS's pad_input_ids gives them")
        cache = past_key_value_states
        if cache:
            logits, _ = self._step(x, cache)
            return self._from_owner_of_last(logits.clone()), cache
        strategy = self.distributed_strategy
        starts = [0] * x.shape[0] if position_ids is None else _starts(x, position_ids)
        decoder = self._decoder(x, starts)
        positions = rope_positions(strategy.positions(x.device), starts)
        if use_cache:
            local, cache = decoder.prefill(strategy.shard_input(x), positions, new_tokens, last_n_tokens)
        else:
            local = self.model(
                strategy.shard_input(x),
                position_ids=positions,
                last_n_tokens=last_n_tokens,
                attn_name=ATTN_NAME,
                ring=decoder.ring,
            )
        logits = self._from_owner_of_last(local) if last_n_tokens else strategy.gather_output(local)
        decoder.ring.transport.take_transfers()  # nobody reads the times of hops
        return (logits, cache) if use_cache else logits

    def next_token(self, token: torch.Tensor, cache: RingCache) -> torch.Tensor:
        """The most likely token [B, 1] after token [B, 1], on all ranks alike; the cache grows by it."""
        return self._step(token, cache)[1].clone()

    def _step(self, token: torch.Tensor, cache: RingCache) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Decoder.step`."""
        check_supported(self.model, cache.length + 1 - min(cache.starts))
        return self._decoder(token, cache.starts).step(token, cache)

    def _decoder(self, x: torch.Tensor, starts: Sequence[int]) -> Decoder:
        device, strategy = x.device, self.distributed_strategy
        if self._kernels is None:
            dtype, head_dim = next(self.model.parameters()).dtype, head_dim_of(self.model)
            kernel = get_kernel(self._kernel_name, device, dtype, head_dim)
            self._kernels = kernel, get_decode_kernel(device, dtype, head_dim)
        ring = RingContext(
            plan=replace(strategy.plan, starts=tuple(starts)),
            rank=strategy.rank,
            transport=transport_of(strategy.group, device, self._transport_name),
            kernel=self._kernels[0],
            clock=NoClock(),
        )
        return Decoder(self.model, ring, self._kernels[1])

    def _from_owner_of_last(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of the rank with the last position, on every rank, so that all choose one token."""
        strategy, logits = self.distributed_strategy, logits.contiguous()
        if dist.is_initialized():
            broadcast(logits, strategy.plan.owner_of_last, strategy.group)
        return logits


def _starts(x: torch.Tensor, position_ids: torch.Tensor) -> list[int]:
    """The first slot of each sequence, of left-padded positions [B, S]."""
    slots = torch.arange(x.shape[1], device=x.device)
    starts = (slots[-1] - position_ids[:, -1]).tolist()
    if position_ids.shape != x.shape or not torch.equal(position_ids, rope_positions(slots, starts)):
        raise UserError(
            "position_ids must count from 0 to the last slot, with 0 for padding on the left, as FMS's "
            "pad_input_ids gives them"
        )
    return starts


def get_model(
    architecture: str,
    variant: str | None = None,
    *,
    distributed_strategy: str | None = None,
    block_lens: Sequence[int] | None = None,
    layout: str = "contiguous",
    group: dist.ProcessGroup | None = None,
    kernel: str = "auto",
    transport: str = "auto",
    **kwargs: Any,
) -> nn.Module:
    """FMS's `get_model`, which also knows `distributed_strategy="ring"` with `block_lens`, one a rank.

    transport: auto is what the group's backend can do, see `ring.groups`. All other arguments go to FMS;
    with architecture="hf_pretrained", see `checkpoint.from_pretrained`. max_expected_seq_len has to cover the
    prompt and what is generated. The weights of rank 0 are broadcast, so that random ones agree.
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
    if architecture == "hf_pretrained":
        model = from_pretrained(variant, **kwargs)
    elif architecture == "hf_configured" or kwargs.get("source") == "hf":
        raise UserError(
            f"{architecture} of Hugging Face goes round the checks of a checkpoint; "
            'on a ring use "hf_pretrained"'
        )
    else:
        model = fms_get_model(architecture, variant, distributed_strategy="none", **kwargs)
    broadcast_weights(model, group)
    return RingModel(model.eval(), strategy, kernel, transport)
