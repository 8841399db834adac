"""Gluon device code on Hopper that normalises, merges and writes the result of a query tile.

`hopper_kernel` calls it.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ringexp.kernels import arithmetic

_LN2 = gl.constexpr(arithmetic.LN2)
_LOG2E = gl.constexpr(arithmetic.LOG2E)


@gluon.jit
def write(acc, row_max, row_sum, out_base, final_base, stride_ol, lse_base, first_row, q_len, done_start,
          done_stop, MERGE: gl.constexpr, FINAL: gl.constexpr):  # fmt: skip
    """Normalise and store the rows below q_len.

    With MERGE they are merged into the earlier results: out = old + w * (new - old), w = sigmoid(new_lse -
    old_lse). With FINAL the rows [done_start, done_stop) go to final_base in place of out_base.
    """
    O_LAYOUT: gl.constexpr = acc.type.layout
    rows = first_row + gl.arange(0, acc.shape[0], gl.SliceLayout(1, O_LAYOUT))
    dims = gl.arange(0, acc.shape[1], gl.SliceLayout(0, O_LAYOUT))
    in_range = rows < q_len
    lse2 = row_max + gl.log2(row_sum)
    acc = acc * (1.0 / row_sum)[:, None]
    offsets = (rows.to(gl.int64) * stride_ol)[:, None] + dims[None, :]
    out_ptrs = out_base + offsets
    if MERGE:
        old_lse2 = gl.load(lse_base + rows, mask=in_range, other=0.0) * _LOG2E
        weight = 1.0 / (1.0 + gl.exp2(old_lse2 - lse2))
        old = gl.load(out_ptrs, mask=in_range[:, None], other=0.0)
        acc = old + weight[:, None] * (acc - old)
        larger = gl.maximum(lse2, old_lse2)
        lse2 = larger + gl.log2(gl.exp2(lse2 - larger) + gl.exp2(old_lse2 - larger))
    kept = in_range
    if FINAL:
        done = (rows >= done_start) & (rows < done_stop)
        kept = in_range & ~done
        final = acc.to(final_base.dtype.element_ty)
        gl.store(final_base + offsets, final, mask=(in_range & done)[:, None])
    gl.store(out_ptrs, acc.to(out_base.dtype.element_ty), mask=kept[:, None])
    write_lse(lse2, lse_base, first_row, q_len)


@gluon.jit
def write_lse(lse2, lse_base, first_row, q_len):
    """Convert log-sum-exps from base 2 to base e, and store those of the rows below q_len."""
    rows = first_row + gl.arange(0, lse2.shape[0], lse2.type.layout)
    gl.store(lse_base + rows, lse2 * _LN2, mask=rows < q_len)
