"""The provider of kernel=sdpa: PyTorch's own attention kernels, where they also return the log-sum-exp.

`torch.nn.functional.scaled_dot_product_attention` drops it, so these functions call the operators underneath.
Each is a block as in `contract`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from ringexp.kernels.contract import LOWEST_LSE, Kernel, check_block
from ringexp.kernels.requirements import AMPERE, capability, needs_capability
from ringexp.planning import BlockShape

_aten = torch.ops.aten
_MAX_FLASH_HEAD_DIM = 256
ROWS_AT_ONCE = 1024
"""Rows whose scores are computed together, which bounds their memory."""


def why_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Check that a GPU can compute in bfloat16. For all else there is an operator on every device."""
    lacks = needs_capability(device, AMPERE) if (device.type, dtype) == ("cuda", torch.bfloat16) else None
    return lacks and lacks.replace(", but", " for bfloat16, but")


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Return the operator that fits: flash attention, or on some GPUs memory-efficient attention."""
    if device.type == "cpu":
        return Kernel("sdpa", flash_cpu)
    flash_fits = dtype != torch.float32 and head_dim <= _MAX_FLASH_HEAD_DIM and capability(device) >= AMPERE
    return Kernel("sdpa", flash_cuda if flash_fits else efficient_cuda)


def flash_cpu(
    q: Tensor, k: Tensor, v: Tensor, shape: BlockShape, softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """Compute one block with the CPU's flash attention: float32, bfloat16, float16; any head_dim.

    KV heads are not expanded. PyTorch returns out 0 and lse 0 for a row whose scores are all -inf, and for a
    short row whose scores are all NaN. This function corrects the former to lse -inf, the latter to NaN.
    """
    check_block(q, k, v, shape, softmax_scale)
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, shape is BlockShape.CAUSAL, scale=softmax_scale
    )
    suspect = lse == 0
    if suspect.any():
        suspect &= (out == 0).all(dim=3)
        highest = _highest_scores(suspect, q, k, shape)
        wrong = highest.isneginf() | highest.isnan()
        lse = torch.where(wrong, highest, lse)
        out = out.masked_fill(highest.isnan().unsqueeze(3), math.nan)
    return out, lse


def flash_cuda(
    q: Tensor, k: Tensor, v: Tensor, shape: BlockShape, softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """Compute one block with FlashAttention-2: float16, bfloat16; capability >= 8.0; head_dim <= 256.

    KV heads are not expanded. A head_dim that is not a multiple of 8 is padded with zeros, which costs a
    copy. The kernel returns out 0 and lse +inf for a row whose scores are all -inf. This function sets such
    an lse to `LOWEST_LSE`.
    """
    check_block(q, k, v, shape, softmax_scale)
    head_dim = q.shape[3]
    q, k, v = _pad_head_dim(q), _pad_head_dim(k), _pad_head_dim(v)
    out, lse = _aten._scaled_dot_product_flash_attention(
        q, k, v, 0.0, shape is BlockShape.CAUSAL, False, scale=softmax_scale
    )[:2]
    lse.nan_to_num_(nan=math.nan, posinf=LOWEST_LSE, neginf=LOWEST_LSE)
    return out[..., :head_dim], lse


def efficient_cuda(
    q: Tensor, k: Tensor, v: Tensor, shape: BlockShape, softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """Compute one block with memory-efficient attention: float32, and older GPUs.

    The operator takes no GQA, so KV heads are expanded. A head_dim that is not a multiple of 8 is padded with
    zeros, which costs a copy.
    """
    check_block(q, k, v, shape, softmax_scale)
    num_heads, q_len, head_dim = q.shape[1:]
    k, v = _expand_kv_heads(k, num_heads), _expand_kv_heads(v, num_heads)
    q, k, v = _pad_head_dim(q), _pad_head_dim(k), _pad_head_dim(v)
    out, lse = _aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, shape is BlockShape.CAUSAL, scale=softmax_scale
    )[:2]
    return out[..., :head_dim], lse[:, :, :q_len]  # lse rows are padded to a multiple of 32


def _highest_scores(suspect: Tensor, q: Tensor, k: Tensor, shape: BlockShape) -> Tensor:
    """Return the highest unscaled score per row of `suspect` [B, H, Lq], NaN if any is; 0 for other rows.

    A row can have out 0 and lse 0 for two reasons: no finite score, or a key and a value of zeros. The
    highest score tells them apart.
    """
    group = q.shape[1] // k.shape[1]
    highest = torch.zeros_like(suspect, dtype=torch.float32)
    for batch, head in suspect.any(dim=2).nonzero().tolist():
        keys = k[batch, head // group].float()
        for rows in suspect[batch, head].nonzero().squeeze(1).split(ROWS_AT_ONCE):
            scores = q[batch, head, rows].float() @ keys.mT
            if shape is BlockShape.CAUSAL:
                unseen = torch.arange(keys.shape[0], device=q.device) > rows[:, None]
                scores.masked_fill_(unseen, -math.inf)
            highest[batch, head, rows] = scores.amax(dim=1)
    return highest


def _pad_head_dim(x: Tensor) -> Tensor:
    """Pad the last dimension with zeros to a multiple of 8. They change neither scores nor lse."""
    return pad(x, (0, -x.shape[3] % 8)) if x.shape[3] % 8 else x


def _expand_kv_heads(x: Tensor, num_heads: int) -> Tensor:
    """Repeat each KV head for its group of query heads: [B, Hkv, L, D] -> [B, num_heads, L, D]."""
    batch, num_kv_heads, length, head_dim = x.shape
    if num_kv_heads == num_heads:
        return x
    group = num_heads // num_kv_heads
    return x[:, :, None].expand(batch, num_kv_heads, group, length, head_dim).flatten(1, 2)
