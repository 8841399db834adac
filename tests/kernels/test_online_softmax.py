"""Merged blocks against one block over all keys."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cases import FLOAT32_EPS, Case, inputs
from ringexp.kernels import KeySpan, OnlineSoftmax, oracle
from ringexp.kernels.merge import rows_done
from ringexp.planning import BlockShape, make_plan
from ringexp.ring.route import Route
from support.joining import joining_kernel
from support.shapes import shape_of

SCALE = 0.25


def merged(q, k, v, pieces):
    """The state after merging [(key slice, row slice)], each piece computed by the oracle."""
    batch, num_heads, q_len, head_dim = q.shape
    state = OnlineSoftmax(batch, num_heads, q_len, head_dim, q.device)
    for keys, rows in pieces:
        state.merge(*oracle.block(q[:, :, rows], k[:, :, keys], v[:, :, keys], BlockShape.FULL, SCALE), rows)
    return state


def assert_exact(state, q, k, v, causal=False):
    """Within a few float32 roundings of the oracle, however many merges it took."""
    out, lse = oracle.block_fp64(q, k, v, shape_of(causal), SCALE)
    lse_error = 4 * FLOAT32_EPS * (1 + lse.abs().max().item())
    assert (state.lse.double() - lse).abs().max() <= lse_error
    error = (state.output(torch.float32).transpose(1, 2).double() - out).abs().max()
    assert error <= (8 * FLOAT32_EPS + lse_error) * v.abs().max()


@st.composite
def key_splits(draw):
    kv_len = draw(st.integers(1, 48))
    cuts = sorted(draw(st.sets(st.integers(1, kv_len - 1)))) if kv_len > 1 else []
    bounds = [0, *cuts, kv_len]
    return kv_len, draw(st.permutations([slice(a, b) for a, b in pairwise(bounds)]))


@settings(deadline=None, max_examples=60)
@given(split=key_splits(), magnitude=st.sampled_from([0.1, 1.0, 10.0]))
def test_any_split_of_the_keys_in_any_order_is_exact(split, magnitude):
    kv_len, parts = split
    q, k, v = inputs(Case(5, kv_len, head_dim=16, magnitude=magnitude))
    assert_exact(merged(q, k, v, [(part, slice(None)) for part in parts]), q, k, v)


@settings(deadline=None, max_examples=30)
@given(split=key_splits(), row=st.integers(1, 6), data=st.data())
def test_rows_may_be_merged_in_pieces(split, row, data):
    kv_len, parts = split
    q, k, v = inputs(Case(7, kv_len, head_dim=16))
    pieces = data.draw(
        st.permutations([(part, rows) for part in parts for rows in (slice(0, row), slice(row, None))])
    )
    assert_exact(merged(q, k, v, pieces), q, k, v)


@pytest.mark.parametrize("num_parts", [2, 16, 128])
def test_one_error_bound_holds_for_any_number_of_parts(num_parts):
    """A ring of P ranks merges fewer than 2 P blocks into a row."""
    q, k, v = inputs(Case(4, 1024, head_dim=16))
    parts = torch.arange(1024).tensor_split(num_parts)
    pieces = [(slice(int(part[0]), int(part[-1]) + 1), slice(None)) for part in parts]
    assert_exact(merged(q, k, v, pieces), q, k, v)


@pytest.mark.parametrize("blocks", [[(0, 16)], [(8, 16), (8, 16), (0, 8)]], ids=["one", "three"])
def test_a_kernel_that_merges_its_own_blocks(blocks):
    kernel = joining_kernel()
    q, k, v = inputs(Case(16, 16, causal=True, head_dim=16))
    state = OnlineSoftmax(2, 4, 16, 16, "cpu", blocks=blocks)
    if len(blocks) == 1:
        state.attend(kernel, q, [KeySpan(k, v)], BlockShape.CAUSAL, SCALE)
    else:  # the rows of the second half first, so that the state begins with nothing for the others
        tail = slice(8, 16)
        state.attend(kernel, q[:, :, 8:], [KeySpan(k[:, :, :8], v[:, :, :8])], BlockShape.FULL, SCALE, tail)
        state.attend(kernel, q[:, :, 8:], [KeySpan(k[:, :, 8:], v[:, :, 8:])], BlockShape.CAUSAL, SCALE, tail)
        state.attend(
            kernel, q[:, :, :8], [KeySpan(k[:, :, :8], v[:, :, :8])], BlockShape.CAUSAL, SCALE, slice(0, 8)
        )
    assert_exact(state, q, k, v, causal=True)


def test_rows_that_no_block_covers_are_zero_beside_those_that_are_done():
    kernel = joining_kernel()
    q, k, v = inputs(Case(16, 16, head_dim=16))
    state = OnlineSoftmax(2, 4, 16, 16, "cpu", blocks=[(4, 16), (8, 12)], dtype=torch.bfloat16)
    for start, stop, keys in ((4, 16, slice(0, 8)), (8, 12, slice(8, 16))):
        rows = slice(start, stop)
        state.attend(
            kernel, q[:, :, rows], [KeySpan(k[:, :, keys], v[:, :, keys])], BlockShape.FULL, SCALE, rows
        )
    out = state.output(torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert not out[:, :4].any()
    for rows, keys in (
        (slice(4, 8), slice(0, 8)),
        (slice(8, 12), slice(0, 16)),
        (slice(12, 16), slice(0, 8)),
    ):
        exact = oracle.block_fp64(q[:, :, rows], k[:, :, keys], v[:, :, keys], BlockShape.FULL, SCALE)[0]
        torch.testing.assert_close(out[:, rows].transpose(1, 2).double(), exact, rtol=1e-2, atol=1e-2)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), max_size=6))
def test_every_row_is_done_once_after_its_last_block_or_left_over(found):
    q_len = 12
    blocks = [(start, min(start + count, q_len)) for start, count in found if start < q_len]
    done, left = rows_done(blocks, q_len)
    owners = [[] for _ in range(q_len)]
    for index, (start, stop) in enumerate(done):
        assert blocks[index][0] <= start <= stop <= blocks[index][1]
        for row in range(start, stop):
            owners[row].append(index)
    leftover = [row for start, stop in left for row in range(start, stop)]
    for row, mine in enumerate(owners):
        covering = [index for index, (start, stop) in enumerate(blocks) if start <= row < stop]
        assert mine in ([], covering[-1:])
        assert (not mine) == (row in leftover)


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
@pytest.mark.parametrize("tokens", [[8, 8], [3, 9, 4], [5, 1, 2, 8]])
def test_no_row_of_a_ring_is_left_over(tokens, layout):
    plan = make_plan(sum(tokens), tokens, layout)
    for rank in range(len(tokens)):
        blocks = [
            (block.q_start, block.q_stop)
            for source in Route.of(tokens, rank).sources
            for block in plan.blocks(rank, source)
        ]
        assert rows_done(blocks, tokens[rank])[1] == []


def test_causal_zigzag_rows():
    """A diagonal block on all rows, then a full one on the tail only: causal attention in ring order."""
    q, k, v = inputs(Case(16, 16, causal=True, head_dim=16))
    state = OnlineSoftmax(2, 4, 16, 16, "cpu")
    state.merge(*oracle.block(q[:, :, 8:], k[:, :, :8], v[:, :, :8], BlockShape.FULL, SCALE), slice(8, 16))
    for half in (slice(0, 8), slice(8, 16)):
        state.merge(
            *oracle.block(q[:, :, half], k[:, :, half], v[:, :, half], BlockShape.CAUSAL, SCALE), half
        )
    assert_exact(state, q, k, v, causal=True)


@pytest.mark.parametrize("first", [1e4, -1e4], ids=["huge-first", "tiny-first"])
def test_very_unequal_parts_stay_finite(first):
    big, small = torch.full((1, 1, 3), first), torch.full((1, 1, 3), -first)
    ones, twos = torch.ones(1, 1, 3, 2), torch.full((1, 1, 3, 2), 2.0)
    state = OnlineSoftmax(1, 1, 3, 2, "cpu")
    state.merge(ones, big)
    state.merge(twos, small)
    assert state.output(torch.float32).unique().item() == (1.0 if first > 0 else 2.0)
    assert state.lse.unique().item() == 1e4


def test_a_lone_block_is_returned_as_it_is():
    out = torch.randn(2, 5, 4, 16, dtype=torch.bfloat16).transpose(1, 2)
    state = OnlineSoftmax(2, 4, 5, 16, "cpu")
    state.merge(out, torch.randn(2, 4, 5))
    result = state.output(torch.bfloat16)
    assert torch.equal(result, out.transpose(1, 2))
    assert result.data_ptr() == out.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_merged_tensors_are_not_written_to(dtype):
    blocks = [(torch.randn(1, 2, 5, 16, dtype=dtype), torch.randn(1, 2, 5)) for _ in range(3)]
    copies = [(out.clone(), lse.clone()) for out, lse in blocks]
    state = OnlineSoftmax(1, 2, 5, 16, "cpu")
    for out, lse in blocks:
        state.merge(out, lse)
    for (out, lse), (old_out, old_lse) in zip(blocks, copies, strict=True):
        assert torch.equal(out, old_out)
        assert torch.equal(lse, old_lse)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_output_is_blhd_contiguous_in_the_dtype_asked_for(num_blocks):
    state = OnlineSoftmax(1, 2, 5, 16, "cpu")
    for _ in range(num_blocks):
        state.merge(torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5))
    result = state.output(torch.float16)
    assert result.shape == (1, 5, 2, 16)
    assert result.is_contiguous()
    assert result.dtype == torch.float16


def test_bfloat16_blocks_are_accumulated_in_float32():
    """128 equal parts average to themselves: a bfloat16 accumulator would drift."""
    out = torch.randn(1, 2, 5, 16).bfloat16()
    state = OnlineSoftmax(1, 2, 5, 16, "cpu")
    for _ in range(128):
        state.merge(out, torch.zeros(1, 2, 5))
    assert torch.equal(state.output(torch.bfloat16), out.transpose(1, 2))
    torch.testing.assert_close(state.lse, torch.full((1, 2, 5), 128.0).log())


def test_rows_never_merged_are_empty():
    state = OnlineSoftmax(1, 2, 5, 16, "cpu")
    state.merge(torch.ones(1, 2, 2, 16), torch.zeros(1, 2, 2), slice(3, 5))
    assert state.output(torch.float32)[:, :3].eq(0).all()
    assert state.lse[:, :, :3].isneginf().all()
