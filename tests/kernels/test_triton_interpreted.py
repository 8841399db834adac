"""The Triton kernel's arithmetic on CPU tensors, in Triton's interpreter, with small tiles."""

from __future__ import annotations

import pytest
import torch

from kernels.cases import Case, is_blhd_contiguous, measure, merge_difference, rotary_difference, shape_cases

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


@pytest.mark.parametrize(("head_dim", "num_heads"), [(64, 3), (48, 1), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_fused_rotation_is_that_of_fms(in_interpreter, dtype, head_dim, num_heads):
    assert in_interpreter(rotary_difference, dtype, head_dim, num_heads) <= 4
