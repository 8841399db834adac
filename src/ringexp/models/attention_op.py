"""The attention op through which every FMS model joins the ring; no model code is patched.

FMS passes unknown forward keywords to the attention op of every layer, so one call suffices:

    model(ids[:, mine], position_ids=mine, last_n_tokens=1, attn_name=ATTN_NAME, ring=ring_context)
"""

from __future__ import annotations

from typing import Any

import torch
from fms.modules.attention import register_attention_op

from ringexp.errors import UserError
from ringexp.ring.prefill import RingContext, ring_attention

ATTN_NAME = "ringexp_ring"


def _store(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_cache: torch.Tensor | None,
    value_cache: torch.Tensor | None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The cache of a rank is the K/V of its own prompt tokens, [B, L, Hkv, D]."""
    return keys, values, keys, values


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
    **_: Any,
) -> torch.Tensor:
    return ring_attention(query, keys, values, ring, scale_factor)


def _validate(
    input_ids: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    past_key_value_states: Any = None,
    ring: RingContext | None = None,
    **_: Any,
) -> None:
    if ring is None:
        raise UserError(f"attn_name={ATTN_NAME} needs ring=RingContext(...) in the model's forward call")
    if past_key_value_states:
        raise UserError(f"attn_name={ATTN_NAME} computes prefill only, past_key_value_states must be empty")
    tokens = ring.plan.q_shards[ring.rank].num_tokens
    if input_ids.shape[1] != tokens:
        raise UserError(f"rank {ring.rank} holds {tokens} tokens of the plan, got {input_ids.shape[1]}")
    if position_ids is None:
        raise UserError(
            f"attn_name={ATTN_NAME} needs position_ids, the global positions of the rank's tokens"
        )


register_attention_op(ATTN_NAME, _store, _prefill, validate_attn_kwargs_op=_validate)
