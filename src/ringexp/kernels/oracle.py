"""The provider of kernel=reference: the specification of a block, slow and exact to float64 rounding.

It runs on any device in any dtype. Every other kernel is tested against it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ringexp.kernels.contract import BlockFunction, Kernel, check_block
from ringexp.planning import BlockShape

MAX_SCORE_BYTES = 64 << 20


def why_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return None: the reference kernel runs everywhere."""
    return None


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Return the reference kernel."""
    return Kernel("reference", block)


def block(q: Tensor, k: Tensor, v: Tensor, shape: BlockShape, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """Compute softmax(softmax_scale * q k^T) v and its log-sum-exp in float64, and round once at the end.

    Arguments and results are those of `contract`: out in q's dtype, lse float32.
    """
    out, lse = block_fp64(q, k, v, shape, softmax_scale)
    return out.to(q.dtype), lse.float()


def relative_errors(
    block: BlockFunction,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: BlockShape,
    softmax_scale: float,
    rows: int = 64,
) -> tuple[float, float]:
    """Measure the errors of a block kernel on the last query row and on random other rows.

    Args:
        block: the kernel.
        q: [B, H, Lq, D].
        k: [B, Hkv, Lk, D].
        v: as k.
        shape: the shape of the block.
        softmax_scale: multiplies the scores.
        rows: the number of query rows to check, at most.

    Returns:
        |out - exact| / |exact|, and max |lse - exact|.
    """
    out, lse = block(q, k, v, shape, softmax_scale)
    num_heads, q_len = q.shape[1:3]
    others = torch.randperm(q_len - 1, device=q.device)[: rows - 1]
    sample = torch.cat([others.new_tensor([q_len - 1]), others])
    wrong = norm = 0.0
    lse_errors = []
    for head in range(num_heads):
        kv_head = head * k.shape[1] // num_heads
        scores = q[:, head, sample].double() @ k[:, kv_head].double().mT * softmax_scale
        if shape is BlockShape.CAUSAL:
            scores.masked_fill_(torch.arange(q_len, device=q.device) > sample[:, None], float("-inf"))
        exact = scores.softmax(-1) @ v[:, kv_head].double()
        wrong += (out[:, head, sample].double() - exact).square().sum().item()
        norm += exact.square().sum().item()
        off = (lse[:, head, sample].double() - scores.logsumexp(-1)).abs().max()
        lse_errors.append(off)
    return (wrong / norm) ** 0.5, torch.stack(lse_errors).max().item()  # NaN if any is: max() might skip it


def block_fp64(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: BlockShape,
    softmax_scale: float,
    max_score_bytes: int = MAX_SCORE_BYTES,
) -> tuple[Tensor, Tensor]:
    """Compute like `block`, but return out [B, H, Lq, D] and lse [B, H, Lq] in float64.

    The query rows are computed in chunks of at least one row. The scores of a chunk take at most
    max_score_bytes, so memory grows with Lq + Lk, not with Lq * Lk.
    """
    check_block(q, k, v, shape, softmax_scale)
    batch, num_heads, q_len, head_dim = q.shape
    num_kv_heads, kv_len = k.shape[1:3]
    group = num_heads // num_kv_heads
    k64, v64 = k.double(), v.double()
    out = q.new_empty(batch, q_len, num_heads, head_dim, dtype=torch.float64).transpose(1, 2)
    lse = q.new_empty(batch, num_heads, q_len, dtype=torch.float64)
    chunk = max(1, max_score_bytes // (8 * batch * num_heads * kv_len))
    for start in range(0, q_len, chunk):
        stop = min(start + chunk, q_len)
        seen = stop if shape is BlockShape.CAUSAL else kv_len
        # The query heads of one KV head become extra rows of it: [B, Hkv, group * rows, D].
        rows = q[:, :, start:stop].double().reshape(batch, num_kv_heads, -1, head_dim)
        scores = rows @ k64[:, :, :seen].transpose(2, 3) * softmax_scale
        if shape is BlockShape.CAUSAL:
            future = torch.ones(stop - start, seen, dtype=torch.bool, device=q.device).triu(start + 1)
            scores.unflatten(2, (group, -1)).masked_fill_(future, float("-inf"))
        chunk_lse = scores.logsumexp(dim=3)
        level = chunk_lse.masked_fill(chunk_lse.isneginf(), 0.0)  # a row without scores: exp(-inf) is 0
        chunk_out = (scores - level[..., None]).exp() @ v64[:, :, :seen]
        out[:, :, start:stop] = chunk_out.reshape(batch, num_heads, -1, head_dim)
        lse[:, :, start:stop] = chunk_lse.reshape(batch, num_heads, -1)
    return out, lse
