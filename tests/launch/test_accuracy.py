"""A run is exact if each token is, however small its output."""

import math

import pytest
import torch

from ringexp.launch.accuracy import accuracy_of


@pytest.fixture
def exact():
    """Outputs [1, 100, 64] that get smaller, as those of attention do."""
    sizes = torch.arange(1, 101).rsqrt()[None, :, None]
    return torch.randn(1, 100, 64, generator=torch.Generator().manual_seed(1)) * sizes


def test_rounding_is_exact(exact):
    rounded = exact.bfloat16()
    parts = [(rounded[:, rows], exact[:, rows]) for rows in (slice(40), slice(40, None))]
    accuracy = accuracy_of(parts, rounded, exact)
    assert accuracy.exact
    assert accuracy.error_token == accuracy.error_single_token < 0.004
    assert accuracy_of([(exact * (1 + 1e-6), exact)], exact, exact).exact  # a float32 run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [0.02, math.nan])
def test_a_small_token_that_is_wrong_is_found(exact, wrong, dtype):
    """By less than the largest rounding of bfloat16, which is that of a large one."""
    out, single = exact.to(dtype, copy=True), exact.to(dtype)
    out[:, 90] += wrong * out[:, 90].abs().mean()
    accuracy = accuracy_of([(out, exact)], single, exact)
    assert not accuracy.exact
    if dtype == torch.bfloat16 and wrong < 1:
        assert accuracy.error_max_abs <= 1.5 * accuracy.error_single_max_abs
