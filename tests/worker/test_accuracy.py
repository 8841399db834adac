"""A run is exact if each token is, however small its output, and if every value is finite."""

import math

import pytest
import torch

from ringexp.worker.accuracy import accuracy_of

NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.fixture
def exact():
    """Outputs [1, 100, 64] that get smaller, as those of attention do."""
    sizes = torch.arange(1, 101).rsqrt()[None, :, None]
    return torch.randn(1, 100, 64, generator=torch.Generator().manual_seed(1)) * sizes


def on_ranks(out, exact, bounds):
    """Return each rank's part of `out` and of `exact`: rank i has the rows from bounds[i] to the next."""
    rows = [slice(start, stop) for start, stop in zip(bounds, [*bounds[1:], None], strict=True)]
    return [(out[:, each], exact[:, each]) for each in rows]


def test_rounding_is_exact(exact):
    rounded = exact.bfloat16()
    accuracy = accuracy_of(on_ranks(rounded, exact, [0, 40]), rounded, exact)
    assert accuracy.exact
    assert accuracy.why_inexact is None
    assert accuracy.error_token == accuracy.error_single_token < 0.004
    assert accuracy_of([(exact * (1 + 1e-6), exact)], exact, exact).exact  # a float32 run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_token_that_is_wrong_is_found(exact, dtype):
    """By less than the largest rounding of bfloat16, which is that of a large one."""
    out, single = exact.to(dtype, copy=True), exact.to(dtype)
    out[:, 90] += 0.02 * out[:, 90].abs().mean()
    accuracy = accuracy_of([(out, exact)], single, exact)
    assert not accuracy.exact
    if dtype == torch.bfloat16:
        assert accuracy.error_max_abs <= 1.5 * accuracy.error_single_max_abs
    assert "do not use it" in accuracy.why_inexact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("token", [0, 45, 70, 99])
def test_one_value_not_finite_on_any_rank_is_found(exact, token, value, dtype):
    out, single = exact.to(dtype, copy=True), exact.to(dtype)
    out[0, token, 3] = value
    accuracy = accuracy_of(on_ranks(out, exact, [0, 40, 60, 90]), single, exact)
    assert not accuracy.exact
    assert not accuracy.error_max_abs < math.inf
    assert not accuracy.error_token < math.inf
    assert accuracy.why_inexact.startswith("1 values of the output are NaN or infinite")


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("same_in_the_ring", [True, False])
def test_a_model_that_is_not_finite_is_blamed(exact, value, same_in_the_ring):
    exact[0, 50, 7] = value
    out = exact.clone()
    if not same_in_the_ring:
        out[0, 50, 7] = 0.0
    accuracy = accuracy_of(on_ranks(out, exact, [0, 40]), exact, exact)
    assert not accuracy.exact
    assert "the model, its weights or its inputs are at fault, not the ring" in accuracy.why_inexact


@pytest.mark.parametrize("wrong", [0.0, 1e3])
def test_a_dtype_that_overflows_alone_is_blamed(exact, wrong):
    """Infinity of one process must not widen the bounds for the ring."""
    exact[0, 50, 7] = 1e5  # more than float16 holds
    single = exact.half()
    assert single.isinf().any()
    out = single.clone()
    out[0, 10] += wrong
    accuracy = accuracy_of(on_ranks(out, exact, [0, 40]), single, exact)
    assert not accuracy.exact
    assert "use another model.dtype" in accuracy.why_inexact


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e37])
def test_a_wrong_token_is_found_at_any_size(size):
    """Squares of such values are 0 or infinite in float32."""
    exact = size * torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(2)).clamp(-4, 4)
    assert accuracy_of([(exact, exact)], exact, exact).exact
    exact[:, 1:] *= 1e-2
    out = exact.clone()
    out[:, 5] *= 1.0005
    accuracy = accuracy_of([(out, exact)], exact, exact)
    assert accuracy.error_token == pytest.approx(5e-4, rel=0.01)
    assert not accuracy.exact


def test_a_spread_beyond_float32_is_no_free_pass():
    exact = torch.tensor([[[3e38, -3e38], [3e38, 3e38]]])
    assert accuracy_of([(exact, exact)], exact, exact).exact
    assert not accuracy_of([(-exact, exact)], exact, exact).exact


@pytest.mark.parametrize(("off", "exact_then"), [(0.9e-5, True), (1.1e-5, False)])
def test_one_wrong_value_of_a_large_token_is_found(off, exact_then):
    """Logits of a large vocabulary: the token is still near by its norm."""
    exact = torch.linspace(-4, 4, 65_536, dtype=torch.float64).float().reshape(1, -1)
    out = exact.clone()
    out[0, 32_768] += 8 * off
    accuracy = accuracy_of([(out, exact)], exact, exact)
    assert accuracy.error_token < 1e-6
    assert accuracy.exact == exact_then
