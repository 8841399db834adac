"""Merge two partial attention results in one pass over memory. `merge` has the formula."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ringexp.kernels import arithmetic

LOG2E = tl.constexpr(arithmetic.LOG2E)
LN2 = tl.constexpr(arithmetic.LN2)
_ELEMENTS = 2048  # of a tile


def merge_rows(
    old: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    start: int,
    stop: int,
    merged: tuple[Tensor, Tensor],
) -> None:
    """Write old to `merged`, with `new` merged into the rows [start, stop).

    Outputs have any floating dtype, D contiguous; lse is float32.

    Args:
        old: out [B, L, H, D] and lse [B, H, L].
        new: out [B, stop - start, H, D] and lse [B, H, stop - start].
        start: the first row of `new`.
        stop: the row after the last one of `new`.
        merged: out and lse as `old`. If it is `old` itself, only the rows of `new` are visited.
    """
    (old_out, old_lse), (new_out, new_lse), (out, lse) = old, new, merged
    batch, length, num_heads, head_dim = old_out.shape
    first, last = (start, stop) if out is old_out else (0, length)
    block_d = triton.next_power_of_2(head_dim)
    rows = max(1, _ELEMENTS // block_d)
    launch: Any = _merge  # its call is typed as the kernel's own
    with torch.cuda.device_of(old_out):
        launch[(triton.cdiv(last - first, rows), batch * num_heads)](
            old_out,
            old_lse,
            new_out,
            new_lse,
            out,
            lse,
            *old_out.stride()[:3],
            *old_lse.stride(),
            *new_out.stride()[:3],
            *new_lse.stride(),
            *out.stride()[:3],
            *lse.stride(),
            num_heads,
            first,
            last,
            start,
            stop,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            ROWS=rows,
            num_warps=4,
        )


@triton.jit(do_not_specialize=["first", "last", "start", "stop"])
def _merge(old_out_ptr, old_lse_ptr, new_out_ptr, new_lse_ptr, out_ptr, lse_ptr, stride_old_b, stride_old_l,
           stride_old_h, stride_old_lse_b, stride_old_lse_h, stride_old_lse_l, stride_new_b, stride_new_l,
           stride_new_h, stride_new_lse_b, stride_new_lse_h, stride_new_lse_l, stride_out_b, stride_out_l,
           stride_out_h, stride_lse_b, stride_lse_h, stride_lse_l, num_heads, first, last, start, stop,
           HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Write ROWS rows of one head per program: copy those of [first, last), merge those of [start, stop)."""
    rows = tl.cast(first + tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.int64)
    batch = tl.cast(tl.program_id(1) // num_heads, tl.int64)
    head = tl.cast(tl.program_id(1) % num_heads, tl.int64)
    dims = tl.arange(0, BLOCK_D)
    here = rows < last
    both = here & (rows >= start) & (rows < stop)
    dim_mask = dims[None, :] < HEAD_DIM

    old_lse = tl.load(
        old_lse_ptr + batch * stride_old_lse_b + head * stride_old_lse_h + rows * stride_old_lse_l, mask=here
    )
    new_lse = tl.load(
        new_lse_ptr + batch * stride_new_lse_b + head * stride_new_lse_h + (rows - start) * stride_new_lse_l,
        mask=both,
        other=float("-inf"),
    )
    old = tl.load(
        old_out_ptr
        + batch * stride_old_b
        + head * stride_old_h
        + rows[:, None] * stride_old_l
        + dims[None, :],
        mask=here[:, None] & dim_mask,
        other=0.0,
    ).to(tl.float32)
    new = tl.load(
        new_out_ptr
        + batch * stride_new_b
        + head * stride_new_h
        + (rows - start)[:, None] * stride_new_l
        + dims[None, :],
        mask=both[:, None] & dim_mask,
        other=0.0,
    ).to(tl.float32)
    high = tl.maximum(old_lse, new_lse)
    old_weight = tl.exp2((old_lse - high) * LOG2E)
    new_weight = tl.exp2((new_lse - high) * LOG2E)
    total = old_weight + new_weight
    share = tl.where(both, new_weight / total, 0.0)
    out = old + share[:, None] * (new - old)
    merged_lse = tl.where(both, high + tl.log2(total) * LN2, old_lse)
    tl.store(
        out_ptr + batch * stride_out_b + head * stride_out_h + rows[:, None] * stride_out_l + dims[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=here[:, None] & dim_mask,
    )
    tl.store(
        lse_ptr + batch * stride_lse_b + head * stride_lse_h + rows * stride_lse_l, merged_lse, mask=here
    )
