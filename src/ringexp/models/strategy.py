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
from ringexp.models.agreement import check_same_tokens, share_random_state
from ringexp.models.attention_op import ATTN_NAME
from ringexp.models.cache import RingCache
from ringexp.models.checkpoint import load_checkpoint
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
        layout: str = "zigzag",
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
        only_last_token: bool = False,
        new_tokens: int = 0,
        mask: torch.Tensor | None = None,
        **unknown: Any,
    ) -> Any:
        """Return the logits of a prompt, or of the token after a cache, on every rank alike.

        All ranks pass the same tokens; if they do not, all of them are told. Each rank's default random
        generators take the state of rank 0's, so that all ranks draw the same token from the logits.

        Args:
            x: the whole prompt [B, S]; with past_key_value_states the token [B, 1] after those.
            position_ids: [B, S], where each prompt begins in a batch that is padded on the left, as
                `pad_input_ids` of FMS gives them. Not read with past_key_value_states.
            past_key_value_states: the cache that an earlier call returned.
            use_cache: return the cache, too.
            last_n_tokens: 0 for all logits [B, S, V], 1 for those of the last token [B, 1, V].
            only_last_token: FMS's other name for last_n_tokens=1.
            new_tokens: how many tokens the cache has room for at once; it grows if need be.
            mask: not read. It goes with position_ids, which say the same.

        Returns:
            Logits, or with use_cache=True logits and cache.

        Raises:
            UserError: for tokens or arguments that the ring cannot take.
        """
        if unknown:
            raise UserError(f"a ring model does not know {', '.join(unknown)}; leave it out")
        last_n_tokens = last_n_tokens or int(only_last_token)
        if last_n_tokens not in (0, 1):
            raise UserError(f"last_n_tokens={last_n_tokens} must be 0 (all logits) or 1 (the last token's)")
        if mask is not None and position_ids is None:
            raise UserError("a padded batch needs position_ids, as FMS's pad_input_ids gives them")
        strategy, cache = self.distributed_strategy, past_key_value_states
        if cache:
            _check_cache(cache, x)
            check_same_tokens(x, cache.starts, strategy.group)
            logits = self._step(x, cache)[0].clone()
            logits = self._from_owner_of_last(logits)
        else:
            starts = [0] * x.shape[0] if position_ids is None else _starts(x, position_ids)
            check_same_tokens(x, starts, strategy.group)
            logits, cache = self._prompt(x, starts, use_cache, last_n_tokens, new_tokens)
        share_random_state(x.device, strategy.group)
        return (logits, cache) if use_cache or past_key_value_states else logits

    def _prompt(
        self, x: torch.Tensor, starts: Sequence[int], use_cache: bool, last_n_tokens: int, new_tokens: int
    ) -> tuple[torch.Tensor, RingCache | None]:
        """Return the logits of the prompt x [B, S] on every rank, and the cache if it is to be used."""
        strategy, cache = self.distributed_strategy, None
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
        return logits, cache

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


def _check_cache(cache: Any, x: torch.Tensor) -> None:
    """Raise UserError for a cache that is not a ring model's, or tokens that cannot follow it."""
    if not isinstance(cache, RingCache):
        raise UserError(
            "past_key_value_states must be the cache that the ring model returned, not a copy of it; "
            "leave contiguous_cache out"
        )
    if list(x.shape) != [len(cache.starts), 1]:
        raise UserError(
            f"one token follows a cache, [{len(cache.starts)}, 1], but the tokens are {list(x.shape)}"
        )


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
    layout: str = "zigzag",
    group: dist.ProcessGroup | None = None,
    kernel: str = "auto",
    transport: str = "auto",
    **kwargs: Any,
) -> nn.Module:
    """FMS's `get_model`, which also knows `distributed_strategy="ring"` with `block_lens`, one a rank.

    transport: auto is what the group's backend can do, see `ring.groups`. All other arguments go to FMS;
    with architecture="hf_pretrained" and model_path, see `checkpoint`. max_expected_seq_len has to cover the
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
    if architecture == "hf_pretrained" and kwargs.get("model_path"):
        model = _from_folder(strategy.plan.seq_len, **kwargs)
    else:
        model = fms_get_model(architecture, variant, distributed_strategy="none", **kwargs)
    broadcast_weights(model, group)
    return RingModel(model.eval(), strategy, kernel, transport)


def _from_folder(
    seq_len: int,
    *,
    model_path: str,
    device_type: str = "cpu",
    data_type: str | torch.dtype = torch.float32,
    max_expected_seq_len: int | None = None,
) -> nn.Module:
    """A Hugging Face folder's model, by the arguments that FMS has for it."""
    dtype = getattr(torch, data_type) if isinstance(data_type, str) else data_type
    return load_checkpoint(model_path, torch.device(device_type), dtype, max_expected_seq_len or seq_len)
