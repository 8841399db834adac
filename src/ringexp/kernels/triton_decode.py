"""Attention of one token over a cache, its keys split over the whole GPU (Dao et al., Flash-Decoding, 2023).

The kernel reads the number of filled slots from device memory, so a captured CUDA graph serves every token.
Each program computes one part, over a stretch of the filled slots. `merge` combines parts, and also the
results of several ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ringexp.kernels.arithmetic import LOG2E
from ringexp.kernels.triton_block import padded_head_dim
from ringexp.kernels.triton_kernel import LN2, NOTHING, TAIL, visit_keys

PARTS_AT_ONCE = 32
_INTERPRETED_PROGRAMS = 12


@dataclass(frozen=True)
class DecodeTiles:
    """The keys of a tile, and the numbers of warps and load stages that work on it."""

    block_n: int
    num_warps: int
    num_stages: int


# Tiles by padded head_dim; the smallest entry that fits counts. A program fits an SM of 99 KiB.
_16BIT = {64: DecodeTiles(128, 4, 3), 128: DecodeTiles(64, 4, 3), 256: DecodeTiles(32, 4, 3)}
_FLOAT32 = {64: DecodeTiles(32, 4, 3), 128: DecodeTiles(16, 4, 3), 256: DecodeTiles(16, 4, 3)}


def attend(q: Tensor, k: Tensor, v: Tensor, firsts: Tensor, stop: Tensor, softmax_scale: float) -> Tensor:
    """Compute the parts of the attention of one token per sequence.

    Args:
        q: [B, Hkv, group, D], the query heads of each KV head.
        k: [B, slots, Hkv, D], D contiguous, any other strides.
        v: as k.
        firsts: the first slot that each sequence attends to, [B] int32 on the device.
        stop: the slot after the last one, [1] int32 on the device.
        softmax_scale: multiplies the scores.

    Returns:
        [parts, B, Hkv, group, D + 1] float32: out, followed by its log-sum-exp. A part without slots has out
        0 and log-sum-exp -inf.
    """
    batch, num_kv_heads, group, head_dim = q.shape
    capacity = k.shape[1]
    assert k.shape == v.shape == (batch, capacity, num_kv_heads, head_dim), (q.shape, k.shape, v.shape)
    assert q.stride(3) == k.stride(3) == v.stride(3) == 1, "head_dim must be contiguous"
    assert firsts.dtype == stop.dtype == torch.int32, (firsts.dtype, stop.dtype)
    if q.is_cuda:
        programs = torch.cuda.get_device_properties(q.device).multi_processor_count
    else:  # the interpreter would multiply bfloat16 as bit patterns
        programs = _INTERPRETED_PROGRAMS
        q, k, v = q.float(), k.float(), v.float()
    block_d = padded_head_dim(head_dim)
    tiles = choose_tiles(block_d, q.dtype)
    num_parts = max(1, min(programs // (batch * num_kv_heads), triton.cdiv(capacity, tiles.block_n)))
    parts = q.new_empty((num_parts, *q.shape[:3], head_dim + 1), dtype=torch.float32)
    launch: Any = attend_part  # its call is typed as the kernel's own
    with torch.cuda.device_of(q):
        launch[(batch * num_kv_heads * num_parts,)](
            q,
            k,
            v,
            firsts,
            stop,
            parts,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            batch * num_kv_heads,
            num_kv_heads,
            group,
            num_parts,
            softmax_scale * LOG2E,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            BLOCK_M=padded_group(group),
            BLOCK_N=tiles.block_n,
            PRECISION="ieee",
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            enable_fp_fusion=True,
        )
    return parts


def merge(parts: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Merge parts over disjoint keys into one result, in their order.

    Args:
        parts: [parts, ..., D + 1] float32, as `attend` returns them.
        dtype: the type of the output; None: float32, with the log-sum-exp.

    Returns:
        With dtype the output [..., D], otherwise one part [..., D + 1].
    """
    num_parts, head_dim = parts.shape[0], parts.shape[-1] - 1
    rows = parts[0].numel() // (head_dim + 1)
    width = head_dim + 1 if dtype is None else head_dim
    merged = parts.new_empty((*parts.shape[1:-1], width), dtype=dtype or torch.float32)
    launch: Any = merge_parts
    with torch.cuda.device_of(parts):
        launch[(rows,)](
            parts.contiguous(),
            merged,
            num_parts,
            rows,
            HEAD_DIM=head_dim,
            BLOCK_D=padded_head_dim(head_dim),
            BLOCK_P=PARTS_AT_ONCE,
            WITH_LSE=dtype is None,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return merged


def padded_group(group: int) -> int:
    """Return the query rows of a tile: a power of two, and at least the 16 that tensor cores multiply."""
    return max(16, triton.next_power_of_2(group))


def choose_tiles(block_d: int, dtype: torch.dtype) -> DecodeTiles:
    """Return the tiles for a padded head_dim and a dtype, on any GPU."""
    table = _FLOAT32 if dtype == torch.float32 else _16BIT
    return next(tiles for width, tiles in table.items() if block_d <= width)


@triton.jit(do_not_specialize=["heads", "num_kv_heads", "group", "num_parts"])
def attend_part(q_ptr, k_ptr, v_ptr, firsts_ptr, stop_ptr, parts_ptr, stride_qb, stride_qh, stride_qg,
                stride_kb, stride_kl, stride_kh, stride_vb, stride_vl, stride_vh, heads, num_kv_heads, group,
                num_parts, scale_log2, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
                BLOCK_N: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Compute one part per program: query heads of one KV head of one sequence, over a stretch of slots.

    heads is the number of KV heads of all sequences. The heads of one stretch run together, since their rows
    lie together in memory.
    """
    head_index = tl.program_id(0) % heads
    part = tl.program_id(0) // heads
    batch = tl.cast(head_index // num_kv_heads, tl.int64)
    kv_head = tl.cast(head_index % num_kv_heads, tl.int64)

    first = tl.load(firsts_ptr + batch)
    stop = tl.load(stop_ptr)
    stretch = tl.cdiv(tl.cdiv(tl.maximum(stop - first, 0), num_parts), BLOCK_N) * BLOCK_N
    start = first + part * stretch
    end = tl.minimum(start + stretch, stop)
    whole = start + tl.maximum(end - start, 0) // BLOCK_N * BLOCK_N

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    tile_mask = (rows < group)[:, None] & (dims < HEAD_DIM)[None, :]
    q_base = q_ptr + batch * stride_qb + kv_head * stride_qh
    q = tl.load(q_base + rows[:, None] * stride_qg + dims[None, :], mask=tile_mask, other=0.0)
    k_base = k_ptr + batch * stride_kb + kv_head * stride_kh + tl.cast(start, tl.int64) * stride_kl
    v_base = v_ptr + batch * stride_vb + kv_head * stride_vh + tl.cast(start, tl.int64) * stride_vl

    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    # fmt: off
    acc, row_sum, row_max, k_base, v_base = visit_keys(
        acc, row_sum, row_max, q, k_base, v_base, stride_kl, stride_vl, start, whole, end, scale_log2,
        rows, NOTHING, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION)
    acc, row_sum, row_max, k_base, v_base = visit_keys(
        acc, row_sum, row_max, q, k_base, v_base, stride_kl, stride_vl, whole, end, end, scale_log2,
        rows, TAIL, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION)
    # fmt: on

    # Without slots the sum is 0. The divisor is then 1 and the log-sum-exp -inf.
    divisor = tl.where(row_sum > 0, row_sum, 1.0)
    lse = (row_max + tl.log2(divisor)) * LN2
    out_rows = (part * tl.cast(heads, tl.int64) + head_index) * group + rows
    out_base = parts_ptr + out_rows * (HEAD_DIM + 1)
    tl.store(out_base[:, None] + dims[None, :], acc / divisor[:, None], mask=tile_mask)
    tl.store(out_base + HEAD_DIM, lse, mask=rows < group)


@triton.jit(do_not_specialize=["num_parts", "rows"])
def merge_parts(
    parts_ptr,
    merged_ptr,
    num_parts,
    rows,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    WITH_LSE: tl.constexpr,
):
    """Merge one row of the result per program, BLOCK_P parts at a time. `merge` has the formula."""
    row = tl.cast(tl.program_id(0), tl.int64)
    dims = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], dtype=tl.float32)
    total = 0.0
    high = float("-inf")
    for first in range(0, num_parts, BLOCK_P):
        parts = first + tl.arange(0, BLOCK_P)
        base = parts_ptr + (parts * tl.cast(rows, tl.int64) + row) * (HEAD_DIM + 1)
        here = parts < num_parts
        lse = tl.load(base + HEAD_DIM, mask=here, other=float("-inf"))
        out = tl.load(
            base[:, None] + dims[None, :], mask=here[:, None] & (dims < HEAD_DIM)[None, :], other=0.0
        )
        new_high = tl.maximum(high, tl.max(lse, 0))
        level = tl.where(new_high == float("-inf"), 0.0, new_high)  # avoids -inf - -inf, which is NaN
        weights = tl.exp(lse - level)
        shrink = tl.exp(high - level)
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(weights[:, None] * out, 0)
        high = new_high
    divisor = tl.where(total > 0, total, 1.0)
    merged_base = merged_ptr + row * (HEAD_DIM + 1 if WITH_LSE else HEAD_DIM)
    merged = (acc / divisor).to(merged_ptr.dtype.element_ty)
    tl.store(merged_base + dims, merged, mask=dims < HEAD_DIM)
    if WITH_LSE:
        tl.store(merged_base + HEAD_DIM, high + tl.log(divisor))
