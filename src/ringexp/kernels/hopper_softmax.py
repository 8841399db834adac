"""The softmax of the Hopper kernel: one tile of scores at a time, in the registers of one warpgroup."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def pin(x):
    """Return x, computed no earlier than the source code before this call."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], gl.float32, is_pure=False, pack=1)


@gluon.jit
def settle(x):
    """Return x, which has no negative element. The source code after this call starts once x is computed.

    The loop never repeats, but it ends a basic block. ptxas would otherwise wait for a matrix product before
    the softmax that should run at the same time. It moves no wait across the end of a basic block. The vote
    keeps the branch uniform within a warp.
    """
    SPIN: gl.constexpr = (
        "{ .reg .pred bad; again: setp.lt.f32 bad, $1, 0f00000000;"
        " vote.sync.any.pred bad, bad, 0xffffffff; @bad bra.uni again; mov.b32 $0, $1; }"
    )
    return gl.inline_asm_elementwise(SPIN, "=f,f", [x], gl.float32, is_pure=False, pack=1)


@gluon.jit
def _sum_in_lanes(probs):
    """Sum the elements that each of the four lanes of a row holds: [rows, N] -> [rows, 4]."""
    pairs = probs.reshape([probs.shape[0], probs.shape[1] // 8, 4, 2])
    return gl.sum(gl.sum(pairs, 3), 1)


@gluon.jit
def mask(scores, first_row, first_key, kv_len, CAUSAL: gl.constexpr):
    """Set scores of the first key tile that is visited to -inf where a row does not see a key."""
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
    """Do one step of the online softmax.

    Returns:
        The probabilities in float32; row_max, the highest scaled base-2 scores; shrink, the factor for
        earlier sums and products; and the sums of the probabilities by `_sum_in_lanes`.
    """
    new_max = gl.maximum(row_max, gl.max(scores, 1) * scale_log2)
    shrink = gl.exp2(row_max - new_max)
    probs = gl.exp2(scores * scale_log2 - new_max[:, None])
    return probs, new_max, shrink, _sum_in_lanes(probs)
