"""The attention op through which every FMS model joins the ring; no model code is patched.

FMS passes unknown forward keywords to the attention op of every layer, so one call suffices:

    model(ids[:, slots], position_ids=slots, last_n_tokens=1, attn_name=ATTN_NAME, ring=RingContext(...))

With use_cache=True it also returns the rank's part of the cache, over which tokens are then decoded:

    model(token, position_ids=..., past_key_value_states=cache, use_cache=True, attn_name=ATTN_NAME,
          ring=DecodeContext(...))
"""

from __future__ import annotations

import torch
from fms.modules.attention import register_attention_op

from ringexp.errors import UserError
from ringexp.ring.attention import ring_attention
from ringexp.ring.context import RingContext
from ringexp.ring.decode import DecodeContext, decode_attention, stored

ATTN_NAME = "ringexp_ring"


def _store(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_cache: torch.Tensor | None,
    value_cache: torch.Tensor | None,
    *,
    ring: RingContext | DecodeContext,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Store keys and values in this rank's cache [B, slots, Hkv, D], whose last slots are still free.

    All ranks write a token that is decoded; only its owner counts the slot as filled.
    """
    if isinstance(ring, DecodeContext):
        assert key_cache is not None
        assert value_cache is not None
        key_cache.index_copy_(1, ring.slots.next_slot, keys)
        value_cache.index_copy_(1, ring.slots.next_slot, values)
        return key_cache, value_cache, key_cache, value_cache
    filled = ring.filled + keys.shape[1]
    key_cache = stored(key_cache, keys, ring.filled, ring.capacity or 0)
    value_cache = stored(value_cache, values, ring.filled, ring.capacity or 0)
    return key_cache[:, :filled], value_cache[:, :filled], key_cache, value_cache


def _prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    nheads: int,
    kvheads: int,
    p_dropout: float,
    scale_factor: float | None,
    *,
    ring: RingContext,
    **_: object,
) -> torch.Tensor:
    return ring_attention(query, keys, values, ring, scale_factor)


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    nheads: int,
    kvheads: int,
    p_dropout: float,
    scale_factor: float | None,
    *,
    ring: DecodeContext,
    **_: object,
) -> torch.Tensor:
    return decode_attention(query, keys, values, ring, scale_factor)


def _is_prefill(*, ring: RingContext | DecodeContext, **_: object) -> bool:
    return isinstance(ring, RingContext)


def _validate(
    input_ids: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    past_key_value_states: object = None,
    ring: RingContext | DecodeContext | None = None,
    **_: object,
) -> None:
    if ring is None:
        raise UserError(f"attn_name={ATTN_NAME} needs ring=RingContext(...) in the model's forward call")
    if position_ids is None:
        raise UserError(
            f"attn_name={ATTN_NAME} needs position_ids, the global positions of the rank's tokens"
        )
    if isinstance(ring, DecodeContext):
        if not past_key_value_states or input_ids.shape[1] != 1:
            raise UserError(
                f"ring=DecodeContext(...) decodes one token over past_key_value_states, got "
                f"{input_ids.shape[1]} tokens"
            )
        return
    if past_key_value_states and not ring.filled:
        raise UserError("ring=RingContext(...) is for prefill, past_key_value_states must be empty")
    tokens = ring.plan.q_shards[ring.rank].num_tokens
    if input_ids.shape[1] != tokens:
        raise UserError(f"rank {ring.rank} holds {tokens} tokens of the plan, got {input_ids.shape[1]}")


register_attention_op(
    ATTN_NAME,
    _store,
    _prefill,
    is_prefill_op=_is_prefill,
    compute_decode_op=_decode,
    validate_attn_kwargs_op=_validate,
)
