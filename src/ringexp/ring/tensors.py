"""Queries, keys and values of one rank, checked against the plan that they are for."""

from __future__ import annotations

import torch

from ringexp.errors import UserError
from ringexp.planning import Plan


def check_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, rank: int) -> None:
    """Raise UserError for tensors that `ringexp.ring_attention` cannot compute with."""
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if plan.chunks:
        raise UserError("the plan is in chunks; call with each of plan.chunks, and keys and values up to it")
    if not q.dim() == k.dim() == v.dim() == 4 or k.shape != v.shape:
        raise UserError(f"q must be [B, Lq, H, D], k and v both [B, Lkv, Hkv, D], got {shapes}")
    (batch, q_len, num_heads, head_dim), (kv_batch, kv_len, num_kv_heads, kv_dim) = q.shape, k.shape
    if (batch, head_dim) != (kv_batch, kv_dim) or num_heads % num_kv_heads:
        raise UserError(f"q, k and v need one B and D, and H a multiple of Hkv, got {shapes}")
    planned = plan.tokens[rank], (plan.kv_tokens if plan.aligned else plan.tokens)[rank]
    if (q_len, kv_len) != planned:
        raise UserError(
            f"rank {rank} holds {planned[0]} queries and {planned[1]} keys of the plan, got {shapes}; "
            "cut tensors with ringexp.shard"
        )
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        types = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise UserError(f"q, k and v need one dtype and one device, got {types}")
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise UserError("ring attention has no backward; call it under torch.inference_mode() or no_grad()")
    if q.is_cuda and torch.cuda.is_current_stream_capturing():
        raise UserError("ring_attention cannot be captured in a CUDA graph; call it eagerly")
