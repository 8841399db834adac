"""Choosing the kernel for kernel=auto."""

from __future__ import annotations

import pytest
import torch

from ringexp.calibration.kernel_choice import (
    BlockSize,
    fastest,
    in_the_running,
    is_right,
    local_length,
    times_ms,
)
from ringexp.kernels import Kernel, get_kernel, oracle

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("seq_len", "world_size", "length"),
    [(4096, 2, 2048), (4097, 2, 4096), (3000, 3, 1024), (2, 2, 2), (1 << 20, 2, 16384)],
)
def test_choices_are_shared_by_lengths_up_to_a_power_of_two(seq_len, world_size, length):
    assert local_length(seq_len, world_size) == length


def test_the_ranks_together_choose_the_fastest():
    times = [{"triton": 1.0, "cudnn": 1.2}, {"triton": 9.0, "cudnn": 3.0}]
    name, means = fastest(times)
    assert name == "cudnn"
    assert means == pytest.approx({"triton": 1.8, "cudnn": 2 / (1 / 1.2 + 1 / 3)})


def test_a_kernel_that_is_wrong_on_one_rank_is_out():
    assert fastest([{"triton": 1.0, "cudnn": 2.0}, {"cudnn": 2.0}])[0] == "cudnn"
    with pytest.raises(ValueError, match="no kernel is right on every rank"):
        fastest([{"triton": 1.0}, {"cudnn": 2.0}])


def test_a_kernel_is_out_of_the_running_after_it_was_slow_twice():
    assert in_the_running({"triton": [], "sdpa": []}) == ["triton", "sdpa"]
    assert in_the_running({"triton": [1.0], "sdpa": [9.0]}) == ["triton", "sdpa"]
    assert in_the_running({"triton": [1.1, 1.0], "cudnn": [9.0, 1.5], "sdpa": [2.0, 1.6]}) == [
        "triton",
        "cudnn",
    ]


def broken(q, k, v, shape, softmax_scale):
    """Right but for the last query row of one head, which nobody wrote."""
    out, lse = oracle.block(q, k, v, shape, softmax_scale)
    out[:, 1, -1] = float("nan")
    return out, lse


def without_a_sum(q, k, v, shape, softmax_scale):
    """Right but for the log-sum-exp of one head, which is NaN."""
    out, lse = oracle.block(q, k, v, shape, softmax_scale)
    lse[:, 2] = float("nan")
    return out, lse


def coarse(q, k, v, shape, softmax_scale):
    out, lse = oracle.block(q, k, v, shape, softmax_scale)
    return out * 1.01, lse


@pytest.mark.parametrize("length", [50, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_are_checked_against_float64(dtype, length):
    inputs = BlockSize(1, 4, 2, 32, dtype, length).inputs(CPU)
    assert is_right(get_kernel("sdpa", "cpu", dtype, 32), *inputs, 0.2)
    assert not is_right(Kernel("broken", broken), *inputs, 0.2)
    assert not is_right(Kernel("without a sum", without_a_sum), *inputs, 0.2)
    assert not is_right(Kernel("coarse", coarse), *inputs, 0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_only_right_kernels_are_timed():
    kernels = [get_kernel(name, "cuda", torch.bfloat16, 64) for name in ("sdpa", "hopper")]
    shape = BlockSize(1, 4, 2, 64, torch.bfloat16, 512)
    times = times_ms([*kernels, Kernel("broken", broken)], shape, torch.device("cuda"))
    assert set(times) == {"sdpa", "hopper"}
    assert min(times.values()) > 0
