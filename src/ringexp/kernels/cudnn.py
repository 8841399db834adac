"""The provider of kernel=cudnn: cuDNN's fused attention, through PyTorch's operator."""

from __future__ import annotations

import torch
from torch import Tensor

from ringexp.kernels.contract import Kernel, check_block
from ringexp.kernels.requirements import AMPERE, HOPPER, capability, needs_capability, needs_head_dim
from ringexp.kernels.sdpa import flash_cuda
from ringexp.planning import BlockShape

_CUDNN_9_0, _CUDNN_9_10 = 90000, 91000


def why_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Check the GPU, the version of cuDNN and PyTorch's own limits of head_dim: 256 on Hopper, else 128."""
    lacks = needs_capability(device, AMPERE)
    version = torch.backends.cudnn.version() or 0
    if not lacks and version < _CUDNN_9_0:
        lacks = f"cuDNN >= 9.0, but this PyTorch has {version or 'none'}"
    limit = 256 if capability(device) == HOPPER and version >= _CUDNN_9_10 else 128
    return lacks or needs_head_dim(head_dim, 8, limit)


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Return cuDNN's kernel."""
    return Kernel("cudnn", block)


def block(q: Tensor, k: Tensor, v: Tensor, shape: BlockShape, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """Compute one block with cuDNN: float16, bfloat16; head_dim a multiple of 8; KV heads are not expanded.

    cuDNN builds a plan at the first call per shape. It does not take a block with a single key, so
    FlashAttention-2 computes such blocks.
    """
    check_block(q, k, v, shape, softmax_scale)
    if k.shape[2] == 1:
        return flash_cuda(q, k, v, shape, softmax_scale)
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, shape is BlockShape.CAUSAL, False, scale=softmax_scale
    )[:2]
    return out, lse.reshape(q.shape[:3])  # from [B, H, Lq, 1]
