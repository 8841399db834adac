"""Every kernel of the CPU against the float64 oracle, and the oracle against a loop over single rows."""

from __future__ import annotations

import pytest
import torch

from kernels.cases import LIBRARY_LSE_SLACK, Case, inputs, measure, shape_cases
from ringexp.choices import KERNELS
from ringexp.kernels import get_kernel, oracle
from ringexp.planning import BlockShape
from support.shapes import shape_of

ON_THE_CPU = [spec.name for spec in KERNELS if "cpu" in spec.devices and "cpu" not in spec.needs_probe]


@pytest.mark.parametrize("case", shape_cases(), ids=str)
@pytest.mark.parametrize("kernel", ON_THE_CPU)
def test_matches_the_oracle(kernel, case):
    measure(kernel, case).check(case, LIBRARY_LSE_SLACK if kernel == "sdpa" else 0.0)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_oracle_is_softmax_attention_row_by_row(causal):
    q, k, v = inputs(Case(9, 9, causal, num_heads=4, num_kv_heads=2, head_dim=48))
    out, lse = oracle.block_fp64(q, k, v, shape_of(causal), 0.3)
    for batch in range(2):
        for head in range(4):
            for row in range(9):
                seen = row + 1 if causal else 9
                keys, values = (x[batch, head // 2, :seen].double() for x in (k, v))
                weights = (keys @ q[batch, head, row].double() * 0.3).exp()
                expected = weights @ values / weights.sum()
                torch.testing.assert_close(out[batch, head, row], expected, rtol=1e-13, atol=1e-13)
                torch.testing.assert_close(lse[batch, head, row], weights.sum().log(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_oracle_does_not_depend_on_its_chunks(causal):
    q, k, v = inputs(Case(37, 37, causal))
    whole = oracle.block_fp64(q, k, v, shape_of(causal), 0.125)
    for rows in (1, 5, 36):
        chunked = oracle.block_fp64(q, k, v, shape_of(causal), 0.125, max_score_bytes=8 * 2 * 4 * 37 * rows)
        torch.testing.assert_close(chunked, whole, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kernel", ON_THE_CPU)
def test_a_causal_block_must_be_square(kernel):
    q, k, v = inputs(Case(3, 5))
    with pytest.raises(AssertionError, match="square, got 3 x 5"):
        get_kernel(kernel, "cpu", q.dtype, 64).block(q, k, v, BlockShape.CAUSAL, 0.125)


@pytest.mark.parametrize("kernel", ON_THE_CPU)
def test_inputs_are_left_as_they_were(kernel):
    tensors = inputs(Case(17, 17, True, layout="packed"))
    copies = [x.clone() for x in tensors]
    get_kernel(kernel, "cpu", torch.float32, 64).block(*tensors, BlockShape.CAUSAL, 0.125)
    assert all(torch.equal(x, copy) for x, copy in zip(tensors, copies, strict=True))
