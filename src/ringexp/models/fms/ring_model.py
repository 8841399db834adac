"""An FMS model whose prompt is spread over the ranks of a group: what `get_model` makes for the ring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ringexp.errors import UserError
from ringexp.kernels import DecodeKernel, Kernel, get_decode_kernel, get_kernel
from ringexp.models.fms.agreement import check_same_tokens, share_random_state
from ringexp.models.fms.attention_op import ATTN_NAME
from ringexp.models.fms.cache import RingCache
from ringexp.models.fms.facts import check_supported, first_attention
from ringexp.models.fms.generation import Decoder
from ringexp.models.fms.ring_strategy import RingAttentionStrategy
from ringexp.models.fms.rotary import fuse_rotary
from ringexp.models.inputs import rope_positions
from ringexp.planning import Plan
from ringexp.ring.clock import NoClock
from ringexp.ring.context import RingContext
from ringexp.ring.eager import eager
from ringexp.ring.groups import transport_of
from ringexp.ring.ring_group import RingGroup, ring_group_of
from ringexp.ring.shards import positions, shard, unshard


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
        check_supported(model, strategy.plan.seq_len if strategy.plan else 1)
        fuse_rotary(model)
        self.model = model
        self.distributed_strategy = strategy
        self._kernel_name, self._transport_name = kernel, transport
        self._kernels: tuple[Kernel, DecodeKernel] | None = None

    @eager
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
        **unknown: object,
    ) -> torch.Tensor | tuple[torch.Tensor, RingCache | None]:
        """Return the logits of a prompt, or of the token after a cache, on every rank alike.

        All ranks pass the same tokens; if they do not, the call fails on all of them. The default random
        generators of each rank take the state of rank 0's, so that all ranks draw the same token.

        Args:
            x: the whole prompt [B, S]; with past_key_value_states the token [B, 1] after those.
            position_ids: [B, S], where each prompt begins in a batch that is padded on the left, as
                `pad_input_ids` of FMS gives them. Not read with past_key_value_states.
            past_key_value_states: the cache that an earlier call returned.
            use_cache: return the cache, too.
            last_n_tokens: 0 for all logits [B, S, V], 1 for those of the last token [B, 1, V].
            only_last_token: FMS's other name for last_n_tokens=1.
            new_tokens: tokens for which the cache has memory from the start; it grows if need be.
            mask: not read. It goes with position_ids, which say the same.

        Returns:
            Logits, or with use_cache=True logits and cache.

        Raises:
            UserError: for tokens or arguments that the ring cannot take.
            RingError: where another rank has failed.
        """
        with ring_group_of(self.distributed_strategy.group) as ring_group:
            if unknown:
                raise UserError(f"a ring model does not know {', '.join(unknown)}; leave it out")
            last_n_tokens = last_n_tokens or int(only_last_token)
            if last_n_tokens not in (0, 1):
                raise UserError(
                    f"last_n_tokens={last_n_tokens} must be 0 (all logits) or 1 (the last token's)"
                )
            if mask is not None and position_ids is None:
                raise UserError("a padded batch needs position_ids, as FMS's pad_input_ids gives them")
            if x.dim() != 2 or not x.numel() or x.is_floating_point():
                raise UserError(f"token ids must be [B, S], got {list(x.shape)} of {x.dtype}")
            cache = past_key_value_states
            decodes = isinstance(cache, RingCache) or bool(cache)
            if decodes:
                logits = self._after(x, _checked_cache(cache, x), ring_group)
            else:
                starts = [0] * x.shape[0] if position_ids is None else _starts(x, position_ids)
                check_same_tokens(x, starts, ring_group)
                logits, cache = self._prompt(x, starts, use_cache, last_n_tokens, new_tokens, ring_group)
            share_random_state(x.device, ring_group)
            return (logits, cache) if use_cache or decodes else logits

    @eager
    def next_token(self, token: torch.Tensor, cache: RingCache) -> torch.Tensor:
        """Return the most likely token [B, 1] after token [B, 1] on every rank; the cache grows by it."""
        with ring_group_of(self.distributed_strategy.group) as ring_group:
            stepped = self._step(token, cache)
            chosen = stepped[1].clone() if stepped else torch.empty_like(token)
            if _has_others(cache.plan):
                ring_group.broadcast(chosen, cache.plan.owner_of_last)
            return chosen

    def _after(self, token: torch.Tensor, cache: RingCache, ring_group: RingGroup) -> torch.Tensor:
        """Return the logits after a token [B, 1] on every rank."""
        check_same_tokens(token, cache.starts, ring_group)
        stepped = self._step(token, cache)
        logits = stepped[0].clone() if stepped else None
        return self._from_owner_of_last(logits, token, cache.plan, ring_group)

    def _prompt(
        self,
        x: torch.Tensor,
        starts: Sequence[int],
        use_cache: bool,
        last_n_tokens: int,
        new_tokens: int,
        ring_group: RingGroup,
    ) -> tuple[torch.Tensor, RingCache | None]:
        """Return the logits of the prompt x [B, S] on every rank, and the cache if it is to be used."""
        plan = self.distributed_strategy.plan_for(x.shape[1], tuple(starts))
        longest = x.shape[1] - min(starts)
        check_supported(self.model, longest)
        decoder, cache = self._decoder(x, plan, ring_group), None
        local = None
        if ring_group.rank not in plan.members:
            cache = decoder.empty_cache(x.shape[0], x.device)
        else:
            ids = shard(x, plan, ring_group.rank)
            where = rope_positions(positions(plan, ring_group.rank, x.device), starts)
            if use_cache:
                local, cache = decoder.prefill(ids, where, new_tokens, last_n_tokens)
            else:
                local = self.model(
                    ids,
                    position_ids=where,
                    last_n_tokens=last_n_tokens,
                    attn_name=ATTN_NAME,
                    ring=decoder.ring,
                )
        if last_n_tokens:
            logits = self._from_owner_of_last(local, x, plan, ring_group)
        else:
            logits = unshard(
                self._on_every_rank(local, x, plan, ring_group), plan, self.distributed_strategy.group
            )
        decoder.ring.transport.transfers.take()  # nobody reads the times of hops
        return logits, cache

    def _step(self, token: torch.Tensor, cache: RingCache) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Do one `Decoder.step`. Return None on a rank that is not in the ring."""
        check_supported(self.model, cache.length + 1 - min(cache.starts))
        decoder = self._decoder(token, cache.plan, ring_group_of(self.distributed_strategy.group))
        if cache:
            return decoder.step(token, cache)
        decoder.pass_by(cache)
        return None

    def _decoder(self, x: torch.Tensor, plan: Plan, ring_group: RingGroup) -> Decoder:
        device, attention = x.device, first_attention(self.model)
        dtype, head_dim = next(self.model.parameters()).dtype, attention.emb_kq_per_head
        if self._kernels is None:
            kernel = get_kernel(self._kernel_name, device, dtype, head_dim)
            self._kernels = kernel, get_decode_kernel(device, dtype, head_dim)
        transport = transport_of(self.distributed_strategy.group, device, self._transport_name)
        if _has_others(plan):  # all ranks reserve, also those that are not in the ring
            shard_bytes = 2 * max(plan.tokens) * attention.kvheads * head_dim * dtype.itemsize
            decoded_bytes = 4 * (attention.nheads * (head_dim + 1) + 1)
            transport.memory.reserve(x.shape[0] * max(shard_bytes, decoded_bytes))
        ring = RingContext(plan, ring_group.rank, transport, self._kernels[0], NoClock())
        return Decoder(self.model, ring, self._kernels[1])

    def _from_owner_of_last(
        self, logits: torch.Tensor | None, x: torch.Tensor, plan: Plan, ring_group: RingGroup
    ) -> torch.Tensor:
        """Return the logits of the rank with the last position, on every rank."""
        shared = self._on_every_rank(logits, x, plan, ring_group, num_tokens=1).contiguous()
        ring_group.broadcast(shared, plan.owner_of_last)
        return shared

    def _on_every_rank(
        self,
        logits: torch.Tensor | None,
        x: torch.Tensor,
        plan: Plan,
        ring_group: RingGroup,
        num_tokens: int = 0,
    ) -> torch.Tensor:
        """Return the logits; on a rank outside the ring an empty tensor like them for `num_tokens`."""
        if not _has_others(plan):
            assert logits is not None
            return logits
        kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
        form = [0, 0] if logits is None else [logits.shape[-1], kinds.index(logits.dtype)]
        shared = torch.tensor(form, device=ring_group.place(x.device))
        ring_group.broadcast(shared, plan.owner_of_last)
        vocabulary, kind = shared.tolist()
        if logits is not None:
            return logits
        return torch.empty(x.shape[0], num_tokens, vocabulary, dtype=kinds[kind], device=x.device)


def _has_others(plan: Plan) -> bool:
    """Tell whether there are ranks outside the ring."""
    return len(plan.members) < plan.world_size


def _checked_cache(cache: object, x: torch.Tensor) -> RingCache:
    """Return the cache. Raises UserError for one that is not a ring model's, or tokens that cannot follow."""
    if not isinstance(cache, RingCache):
        raise UserError(
            "past_key_value_states must be the cache that the ring model returned, not a copy of it; "
            "leave contiguous_cache out"
        )
    if list(x.shape) != [len(cache.starts), 1]:
        raise UserError(
            f"one token follows a cache, [{len(cache.starts)}, 1], but the tokens are {list(x.shape)}"
        )
    return cache


def _starts(x: torch.Tensor, position_ids: torch.Tensor) -> list[int]:
    """Return the first slot of each sequence, of left-padded positions [B, S]."""
    slots = torch.arange(x.shape[1], device=x.device)
    starts = (slots[-1] - position_ids[:, -1]).tolist()
    if position_ids.shape != x.shape or not torch.equal(position_ids, rope_positions(slots, starts)):
        raise UserError(
            "position_ids must count from 0 to the last slot, with 0 for padding on the left, as FMS's "
            "pad_input_ids gives them"
        )
    return starts
