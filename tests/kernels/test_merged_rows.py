"""Blocks over any rows in any order, merged by the state or by a kernel, against a softmax over all keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cases import Case, inputs
from ringexp.kernels import KeySpan, OnlineSoftmax, oracle
from ringexp.planning import BlockShape
from support.joining import joining_kernel

Q_LEN, SCALE = 12, 0.25
KEYS = 3
"""Keys of each block; every block has its own."""


@pytest.fixture(autouse=True)
def _memory_that_was_not_written_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def row_blocks():
    pairs = st.tuples(st.integers(0, Q_LEN - 1), st.integers(1, Q_LEN)).map(
        lambda pair: (pair[0], min(pair[0] + pair[1], Q_LEN))
    )
    whole = st.just((0, Q_LEN))
    return st.lists(pairs | whole, min_size=1, max_size=5)


def state_of(blocks, dtype, by_kernel):
    """Return the state after all blocks, and float64 out and lse of each row over its blocks' keys."""
    q, k, v = inputs(Case(Q_LEN, KEYS * len(blocks), head_dim=16))
    state = OnlineSoftmax(2, 4, Q_LEN, 16, "cpu", blocks=blocks, dtype=dtype)
    kernel = joining_kernel()
    exact = torch.zeros(2, 4, Q_LEN, 16, dtype=torch.float64)
    lse = torch.full((2, 4, Q_LEN), -torch.inf, dtype=torch.float64)
    for number, (start, stop) in enumerate(blocks):
        keys, rows = slice(KEYS * number, KEYS * (number + 1)), slice(start, stop)
        if by_kernel:
            span = KeySpan(k[:, :, keys], v[:, :, keys])
            state.attend(kernel, q[:, :, rows], [span], BlockShape.FULL, SCALE, rows)
        else:
            state.merge(
                *oracle.block(q[:, :, rows], k[:, :, keys], v[:, :, keys], BlockShape.FULL, SCALE), rows
            )
    for row in range(Q_LEN):
        mine = [number for number, (start, stop) in enumerate(blocks) if start <= row < stop]
        seen = [KEYS * number + key for number in mine for key in range(KEYS)]
        if seen:
            one = oracle.block_fp64(
                q[:, :, row : row + 1], k[:, :, seen], v[:, :, seen], BlockShape.FULL, SCALE
            )
            exact[:, :, row], lse[:, :, row] = one[0][:, :, 0], one[1][:, :, 0]
    return state, exact.transpose(1, 2), lse


@settings(deadline=None, max_examples=40)
@given(row_blocks(), st.booleans())
def test_each_row_is_the_softmax_over_the_keys_of_its_blocks(blocks, by_kernel):
    state, exact, lse = state_of(blocks, torch.float32, by_kernel)
    torch.testing.assert_close(state.output(torch.float32).double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.lse.double(), lse, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(row_blocks(), st.booleans())
def test_a_narrow_output_is_the_exact_one_rounded_once(blocks, by_kernel):
    narrow, _, _ = state_of(blocks, torch.bfloat16, by_kernel)
    wide, _, _ = state_of(blocks, torch.float32, by_kernel)
    out = narrow.output(torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, wide.output(torch.float32).bfloat16())


def test_all_merges_after_the_second_are_in_place():
    """The first is adopted and may not be written to, so the second makes the accumulator."""
    state, places = OnlineSoftmax(1, 2, 5, 16, "cpu"), []
    for _ in range(4):
        state.merge(torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5))
        places.append((state.lse.data_ptr(), state.output(torch.float32).data_ptr()))
    assert places[1] == places[2] == places[3] != places[0]


def test_the_last_merge_that_was_told_of_writes_the_output_itself():
    state = OnlineSoftmax(1, 2, 5, 16, "cpu", blocks=[(0, 5), (0, 5), (2, 4)], dtype=torch.bfloat16)
    for rows in (slice(0, 5), slice(0, 5), slice(2, 4)):
        length = rows.stop - rows.start
        state.merge(torch.randn(1, 2, length, 16), torch.randn(1, 2, length), rows)
    first, second = (state.output(torch.bfloat16) for _ in range(2))
    assert first.data_ptr() == second.data_ptr()


@pytest.mark.parametrize(
    ("blocks", "fresh", "in_place"),
    [
        ([(0, 12)], [True], [True]),
        ([(0, 12), (0, 12), (4, 12)], [True, False, False], [False] * 3),
        ([(0, 12), (0, 4), (8, 12)], [True, False, False], [False] * 3),
        ([(0, 4), (0, 12)], [False, False], [False] * 2),  # as many rows as heads, yet not all
        ([(4, 12), (0, 4)], [False, False], [False] * 2),
    ],
)
def test_a_kernel_is_told_when_nothing_is_there_yet(blocks, fresh, in_place):
    """Then it need not read the accumulator; and if it finishes all rows, that is the output itself."""
    joining, told, same = joining_kernel(), [], []

    def block_into(q, spans, shape, scale, accumulator):
        told.append(accumulator.fresh)
        same.append(accumulator.out.data_ptr() == accumulator.final.data_ptr())
        joining.block_into(q, spans, shape, scale, accumulator)

    q, k, v = inputs(Case(Q_LEN, KEYS, head_dim=16))
    state = OnlineSoftmax(2, 4, Q_LEN, 16, "cpu", blocks=blocks)
    for start, stop in blocks:
        rows = slice(start, stop)
        kernel = replace(joining, block_into=block_into)
        state.attend(kernel, q[:, :, rows], [KeySpan(k, v)], BlockShape.FULL, SCALE, rows)
    assert (told, same) == (fresh, in_place)


def test_where_blocks_were_not_told_a_kernel_need_not_merge_them():
    q, k, v = inputs(Case(Q_LEN, 2 * KEYS, head_dim=16))
    state = OnlineSoftmax(2, 4, Q_LEN, 16, "cpu")
    for keys in (slice(0, KEYS), slice(KEYS, None)):
        state.attend(joining_kernel(), q, [KeySpan(k[:, :, keys], v[:, :, keys])], BlockShape.FULL, SCALE)
    exact = oracle.block_fp64(q, k, v, BlockShape.FULL, SCALE)[0].transpose(1, 2)
    torch.testing.assert_close(state.output(torch.float32).double(), exact, rtol=1e-5, atol=1e-5)
