"""The Triton device code of one attention block; `triton_block` calls it. Importing this needs triton.

It is an online softmax over key tiles (Dao, FlashAttention-2, 2023) with base-2 exponentials and float32
accumulation. A causal block is square, so the index of the query tile alone divides its key tiles: those
wholly before the diagonal need no mask, and those on the diagonal need one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ringexp.kernels import arithmetic

LN2 = tl.constexpr(arithmetic.LN2)

# The mask that a run of key tiles needs.
NOTHING = tl.constexpr("nothing")
TAIL = tl.constexpr("tail")
DIAGONAL = tl.constexpr("diagonal")


@triton.jit
def visit_keys(acc, row_sum, row_max, q, k_base, v_base, stride_k, stride_v, start, end, kv_len, scale_log2,
               q_rows, MASK: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
               BLOCK_N: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Add the key tiles of [start, end) to the running statistics.

    Args:
        acc: the unnormalised output, [BLOCK_M, BLOCK_D] float32.
        row_sum: the sums of the exponentials, [BLOCK_M] float32.
        row_max: the highest scaled base-2 scores, [BLOCK_M] float32.
        q: the query tile, [BLOCK_M, BLOCK_D].
        k_base: a pointer to the keys' row `start` of one KV head.
        v_base: a pointer to the values' row `start` of the same head.
        MASK: NOTHING: every key of every tile exists and is seen. TAIL: keys from kv_len on do not exist.
            DIAGONAL: query rows >= j see key j.

    Returns:
        acc, row_sum, row_max, and the pointers at row `end`.
    """
    cols = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    k_offsets = cols[:, None] * stride_k + dims[None, :]
    v_offsets = cols[:, None] * stride_v + dims[None, :]
    dim_mask = dims[None, :] < HEAD_DIM
    for first in range(start, end, BLOCK_N):
        if MASK == NOTHING:
            if HEAD_DIM == BLOCK_D:
                k = tl.load(k_base + k_offsets)
            else:
                k = tl.load(k_base + k_offsets, mask=dim_mask, other=0.0)
        else:
            in_range = (first + cols)[:, None] < kv_len
            k = tl.load(k_base + k_offsets, mask=in_range & dim_mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASK == TAIL:
            scores = tl.where((first + cols)[None, :] < kv_len, scores, float("-inf"))
        elif MASK == DIAGONAL:
            scores = tl.where(q_rows[:, None] >= (first + cols)[None, :], scores, float("-inf"))

        # The first tile of a row always holds a key it sees, so new_max is finite from then on.
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
        probs = tl.exp2(scores * scale_log2 - new_max[:, None])
        shrink = tl.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(probs, 1)
        acc = acc * shrink[:, None]
        row_max = new_max

        if MASK == NOTHING:
            if HEAD_DIM == BLOCK_D:
                v = tl.load(v_base + v_offsets)
            else:
                v = tl.load(v_base + v_offsets, mask=dim_mask, other=0.0)
        else:
            in_range = (first + cols)[:, None] < kv_len
            v = tl.load(v_base + v_offsets, mask=in_range & dim_mask, other=0.0)
        acc = tl.dot(probs.to(v.dtype), v, acc, input_precision=PRECISION)
        # The pointers move, so that no offset within the loop can pass 32 bits.
        k_base += BLOCK_N * stride_k
        v_base += BLOCK_N * stride_v
    return acc, row_sum, row_max, k_base, v_base


@triton.jit(do_not_specialize=["q_len", "kv_len"])
def attention_block(q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, stride_qb, stride_qh, stride_ql, stride_kb,
                    stride_kh, stride_kl, stride_vb, stride_vh, stride_vl, stride_ob, stride_oh, stride_ol,
                    num_heads, group, q_len, kv_len, scale_log2, CAUSAL: tl.constexpr,
                    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
                    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Compute BLOCK_M query rows of one head of one sequence per program, against all keys that they see.

    q, out [B, H, Lq, D] and k, v [B, H / group, Lk, D] have any strides, with D contiguous; lse [B, H, Lq] is
    contiguous. scale_log2 = softmax_scale * log2(e). CAUSAL: q_len == kv_len, BLOCK_N divides BLOCK_M.
    """
    num_tiles = tl.cdiv(q_len, BLOCK_M)
    tile = tl.program_id(0) % num_tiles
    if CAUSAL:
        tile = num_tiles - 1 - tile  # the longest first
    # All tiles of one head come before those of the next, so that they share its keys in the L2 cache.
    head_index = tl.cast(tl.program_id(0) // num_tiles, tl.int64)
    batch = head_index // num_heads
    head = head_index % num_heads
    kv_head = head // group

    first_row = tile * BLOCK_M
    local_rows = tl.arange(0, BLOCK_M)
    rows = first_row + local_rows
    row_mask = rows < q_len
    dims = tl.arange(0, BLOCK_D)
    tile_mask = row_mask[:, None] & (dims[None, :] < HEAD_DIM)

    q_base = q_ptr + batch * stride_qb + head * stride_qh + tl.cast(first_row, tl.int64) * stride_ql
    q = tl.load(q_base + local_rows[:, None] * stride_ql + dims[None, :], mask=tile_mask, other=0.0)
    k_base = k_ptr + batch * stride_kb + kv_head * stride_kh
    v_base = v_ptr + batch * stride_vb + kv_head * stride_vh

    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)

    # fmt: off
    if CAUSAL:
        acc, row_sum, row_max, k_base, v_base = visit_keys(
            acc, row_sum, row_max, q, k_base, v_base, stride_kl, stride_vl, 0, first_row, kv_len, scale_log2,
            rows, NOTHING, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION)
        acc, row_sum, row_max, k_base, v_base = visit_keys(
            acc, row_sum, row_max, q, k_base, v_base, stride_kl, stride_vl,
            first_row, tl.minimum(first_row + BLOCK_M, kv_len), kv_len, scale_log2,
            rows, DIAGONAL, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION)
    else:
        whole = kv_len // BLOCK_N * BLOCK_N
        acc, row_sum, row_max, k_base, v_base = visit_keys(
            acc, row_sum, row_max, q, k_base, v_base, stride_kl, stride_vl, 0, whole, kv_len, scale_log2,
            rows, NOTHING, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION)
        acc, row_sum, row_max, k_base, v_base = visit_keys(
            acc, row_sum, row_max, q, k_base, v_base, stride_kl, stride_vl, whole, kv_len, kv_len, scale_log2,
            rows, TAIL, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION)
    # fmt: on

    out_base = out_ptr + batch * stride_ob + head * stride_oh + tl.cast(first_row, tl.int64) * stride_ol
    out = (acc / row_sum[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_base + local_rows[:, None] * stride_ol + dims[None, :], out, mask=tile_mask)
    lse = (row_max + tl.log2(row_sum)) * LN2
    tl.store(lse_ptr + head_index * q_len + rows, lse, mask=row_mask)
