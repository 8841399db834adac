"""The Triton kernel's arithmetic on CPU tensors, in Triton's interpreter, with small tiles."""

from __future__ import annotations

import pytest
import torch

from kernels.cases import (
    Case,
    is_blhd_contiguous,
    measure,
    merge_difference,
    merged_with_nothing,
    rotary_difference,
    shape_cases,
    with_infinite_keys,
)
from ringexp.kernels.contract import LOWEST_LSE

CASES = [
    *shape_cases(),
    Case(33, 33, True, head_dim=16),
    Case(33, 47, False, head_dim=96),
    Case(33, 33, True, head_dim=256, num_heads=1, num_kv_heads=1),
    Case(31, 33, False, head_dim=40, dtype=torch.float16),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_oracle(in_interpreter, case):
    in_interpreter(measure, "triton", case).check(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_output_lies_in_memory_as_blhd(in_interpreter, dtype):
    assert in_interpreter(is_blhd_contiguous, "triton", Case(33, 33, True, dtype))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("start", "stop"), [(0, 53), (17, 53), (5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_fused_merge_is_the_plain_one(in_interpreter, dtype, start, stop, in_place):
    assert in_interpreter(merge_difference, dtype, start, stop, in_place) <= 8


def test_the_fused_merge_gives_the_lowest_sum_no_weight(in_interpreter):
    """PyTorch's FlashAttention-2 is given that lse for rows whose scores are all -inf."""
    out, lse = in_interpreter(merged_with_nothing, LOWEST_LSE)
    assert out[0, :, 0, 0].tolist() == [1.0, 0.0]
    assert lse[0, 0].tolist() == [0.0, LOWEST_LSE]


@pytest.mark.parametrize("causal", [True, False])
def test_keys_of_minus_infinity_give_nan_but_nothing_wrong(in_interpreter, causal):
    out, exact = in_interpreter(with_infinite_keys, causal)
    right = ~out.isnan()
    torch.testing.assert_close(out[right], exact[right])
    assert out.isnan().any()  # as the contract says of this kernel


@pytest.mark.parametrize(("head_dim", "num_heads"), [(64, 3), (48, 1), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_fused_rotation_is_that_of_fms(in_interpreter, dtype, head_dim, num_heads):
    assert in_interpreter(rotary_difference, dtype, head_dim, num_heads) <= 4
