"""Figures of merit by small numbers that can be checked by hand."""

import math

import pytest

from ringexp.tracking import metrics
from ringexp.tracking.metrics import Accuracy

JUST = 1 + 1e-6
FLOAT32 = {"error_max_abs": 0.0, "error_single_max_abs": 0.0, "error_token": 0.0, "error_single_token": 0.0}
"""A float32 run without any error: one process in the run's precision is the reference itself."""
BFLOAT16 = FLOAT32 | {"error_single_max_abs": 0.02, "error_single_token": 0.004}


def accuracy(known, **changed):
    return Accuracy(**(known | {"reference_spread": 4.0} | changed))


@pytest.mark.parametrize(
    ("known", "error", "bound"),
    [
        (FLOAT32, "error_max_abs", 4e-5),
        (FLOAT32, "error_token", 1e-4),
        (BFLOAT16, "error_max_abs", 0.03),
        (BFLOAT16, "error_token", 0.006),
    ],
)
def test_each_error_has_a_bound_of_its_own(known, error, bound):
    assert accuracy(known, **{error: bound / JUST}).exact
    assert not accuracy(known, **{error: bound * JUST}).exact


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*FLOAT32, "reference_spread"])
def test_a_figure_that_is_not_finite_is_never_exact(name, value):
    assert not accuracy(FLOAT32, **{name: value}).exact


@pytest.mark.parametrize("name", ["not_finite", "single_not_finite", "reference_not_finite"])
def test_any_value_not_finite_is_never_exact(name):
    assert accuracy(BFLOAT16).exact
    wrong = accuracy(BFLOAT16, **{name: 1})
    assert not wrong.exact
    assert "NaN or infinite" in wrong.why_inexact


def test_efficiency_is_the_part_of_all_ranks_time_that_computes():
    assert metrics.efficiency([10.0, 5.0], 10.0) == 0.75
    assert metrics.efficiency([4.0, 0.0, 2.0], 6.0) == pytest.approx(1 / 3)
    assert metrics.efficiency([8.0, 8.0], 8.0) == 1.0
