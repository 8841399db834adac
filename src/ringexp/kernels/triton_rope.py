"""Rotary position embedding in one pass over memory. FMS's own needs a dozen, with float32 temporaries.

Pairs are neighbours, as in FMS: (x[2i], x[2i + 1]) is rotated by an angle that depends on the position and on
i (Su et al., 2021).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048  # of a tile


def rotate(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """Rotate x by its positions in float32, and round once to x's dtype.

    Args:
        x: [B, L, H, D], D contiguous and even.
        table: a rotation matrix per position and pair, [S, D / 2, 2, 2] float32 contiguous.
        positions: [B, L] int64, below S.

    Returns:
        [B, L, H, D] contiguous.
    """
    batch, length, num_heads, head_dim = x.shape
    assert table.shape[1:] == (head_dim // 2, 2, 2), (table.shape, head_dim)
    assert positions.shape == (batch, length), (positions.shape, x.shape)
    assert x.stride(3) == 1, x.stride()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_d = triton.next_power_of_2(head_dim)
    rows = max(1, _ELEMENTS // block_d)
    launch: Any = _rotate  # its call is typed as the kernel's own
    with torch.cuda.device_of(x):
        launch[(triton.cdiv(length, rows), batch)](
            x,
            table,
            positions,
            out,
            *x.stride()[:3],
            *positions.stride(),
            length,
            num_heads,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            ROWS=rows,
            num_warps=4,
        )
    return out


@triton.jit(do_not_specialize=["length"])
def _rotate(
    x_ptr,
    table_ptr,
    positions_ptr,
    out_ptr,
    stride_b,
    stride_l,
    stride_h,
    stride_positions_b,
    stride_positions_l,
    length,
    num_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rotate all heads at ROWS positions of one sequence per program, so that angles are read once."""
    rows = tl.cast(tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.int64)
    batch = tl.cast(tl.program_id(1), tl.int64)
    here = rows < length
    pairs = tl.arange(0, BLOCK_D // 2)
    positions = tl.load(
        positions_ptr + batch * stride_positions_b + rows * stride_positions_l, mask=here, other=0
    )
    angles = table_ptr + positions[:, None] * (2 * HEAD_DIM) + 4 * pairs[None, :]
    known = here[:, None] & (pairs < HEAD_DIM // 2)[None, :]
    cos = tl.load(angles, mask=known, other=0.0)
    sin = tl.load(angles + 2, mask=known, other=0.0)

    dims = tl.arange(0, BLOCK_D)
    mask = here[:, None] & (dims < HEAD_DIM)[None, :]
    source = x_ptr + batch * stride_b + rows[:, None] * stride_l + dims[None, :]
    target = out_ptr + (batch * length + rows)[:, None] * (num_heads * HEAD_DIM) + dims[None, :]
    for head in range(num_heads):
        x = tl.load(source + tl.cast(head, tl.int64) * stride_h, mask=mask, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(x, (ROWS, BLOCK_D // 2, 2)))
        turned = tl.join(first * cos - second * sin, first * sin + second * cos)
        out = tl.reshape(turned, (ROWS, BLOCK_D))
        tl.store(target + head * HEAD_DIM, out.to(out_ptr.dtype.element_ty), mask=mask)
