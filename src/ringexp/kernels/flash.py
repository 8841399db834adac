"""The provider of kernel=flash: FlashAttention-4, from the optional package flash-attn-4 (ringexp[flash])."""

from __future__ import annotations

import torch
from torch import Tensor

from ringexp.kernels.contract import Kernel, check_block
from ringexp.kernels.requirements import AMPERE, capability, needs_capability, needs_head_dim
from ringexp.planning import BlockShape

_MAX_HEAD_DIM = {9: 256}  # by major compute capability; elsewhere 128


def why_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Check the GPU and head_dim."""
    limit = _MAX_HEAD_DIM.get(capability(device)[0], 128)
    return needs_capability(device, AMPERE) or needs_head_dim(head_dim, 8, limit)


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Return FlashAttention-4's forward kernel."""
    return Kernel("flash", block)


def block(q: Tensor, k: Tensor, v: Tensor, shape: BlockShape, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """Compute one block as in `contract`. KV heads are not expanded. The first call of a process compiles."""
    from flash_attn.cute import flash_attn_func  # pyright: ignore[reportMissingImports]

    check_block(q, k, v, shape, softmax_scale)
    q_blhd, k_blhd, v_blhd = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = flash_attn_func(
        q_blhd,
        k_blhd,
        v_blhd,
        softmax_scale=softmax_scale,
        causal=shape is BlockShape.CAUSAL,
        return_lse=True,
    )[:2]
    return out.transpose(1, 2), lse
