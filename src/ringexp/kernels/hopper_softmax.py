"""The softmax of the Hopper kernel: one tile of scores at a time, in the registers of one warpgroup."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def pin(x):
    """x, but computed no earlier than what the source puts before this call."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], gl.float32, is_pure=False, pack=1)


@gluon.jit
def settle(x):
    """x, none of it negative; what the source puts after this call starts no earlier than x is known.

    The loop never repeats. It ends a basic block, and ptxas, which would wait for a product before the
    softmax that is to run beside it, moves no wait over that. Its vote keeps the branch uniform in a warp.
    """
    SPIN: gl.constexpr = (
        "{ .reg .pred bad; again: setp.lt.f32 bad, $1, 0f00000000;"
        " vote.sync.any.pred bad, bad, 0xffffffff; @bad bra.uni again; mov.b32 $0, $1; }"
    )
    return gl.inline_asm_elementwise(SPIN, "=f,f", [x], gl.float32, is_pure=False, pack=1)


@gluon.jit
def _sum_in_lanes(probs):
    """[rows, N] -> [rows, 4]: the sum over what each of the four lanes that share a row holds of it."""
    pairs = probs.reshape([probs.shape[0], probs.shape[1] // 8, 4, 2])
    return gl.sum(gl.sum(pairs, 3), 1)


@gluon.jit
def mask(scores, first_row, first_key, kv_len, CAUSAL: gl.constexpr):
    """Scores of the first key tile visited, -inf where a row does not see a key."""
    S_LAYOUT: gl.constexpr = scores.type.layout
    cols = first_key + gl.arange(0, scores.shape[1], gl.SliceLayout(0, S_LAYOUT))
    if CAUSAL:
        rows = first_row + gl.arange(0, scores.shape[0], gl.SliceLayout(1, S_LAYOUT))
        seen = rows[:, None] >= cols[None, :]
    else:
        seen = (cols < kv_len)[None, :]
    return gl.where(seen, scores, float("-inf"))


@gluon.jit
def softmax(scores, row_max, scale_log2):
    """One step of the online softmax: scores -> (float32 probabilities, row_max, shrink, their sums).

    row_max is of scaled base-2 scores; shrink is what the earlier sums and products are to be multiplied
    with; the sums are those of `_sum_in_lanes`.
    """
    new_max = gl.maximum(row_max, gl.max(scores, 1) * scale_log2)
    shrink = gl.exp2(row_max - new_max)
    probs = gl.exp2(scores * scale_log2 - new_max[:, None])
    return probs, new_max, shrink, _sum_in_lanes(probs)
