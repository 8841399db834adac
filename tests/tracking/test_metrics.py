"""Figures of merit by small numbers that can be checked by hand."""

import math

import pytest

from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.tracking import metrics
from ringexp.tracking.accuracy import Accuracy
from ringexp.tracking.results import Prompt

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


def test_figures_are_ratios_of_two_times():
    assert metrics.slowdown(10.0, 4.0) == 2.5
    assert metrics.speedup_over_even(10.0, 25.0) == 2.5
    assert metrics.speedup(10.0, 25.0) == 2.5
    assert metrics.prediction_error(12.0, 10.0) == pytest.approx(0.2)
    assert metrics.tflops(6e12, 2000.0) == 3.0


def test_without_its_reference_a_figure_is_not_known():
    assert metrics.slowdown(10.0, None) is None
    assert metrics.speedup_over_even(10.0, None) is None
    assert metrics.capacity_efficiency(10.0, [1.0], None, 1.0) is None
    assert metrics.capacity_efficiency(10.0, [1.0], 1.0, None) is None


def test_capacity_efficiency_is_one_for_a_ring_without_loss():
    """A device of 2 TFLOP/s takes 30 ms alone; with another of 1 TFLOP/s beside it, 20 ms are ideal."""
    assert metrics.capacity_efficiency(20.0, [2.0, 1.0], 30.0, 2.0) == 1.0
    assert metrics.capacity_efficiency(25.0, [2.0, 1.0], 30.0, 2.0) == 0.8
    assert metrics.full_speed([2.0, 1.0, 4.0], [100, 50, 100]) == 3.0
    assert metrics.full_speed([2.0], [50]) is None


def test_spread_is_the_interquartile_range():
    assert metrics.spread_ms([3.0]) == metrics.spread_ms([]) == 0.0
    assert metrics.spread_ms([1.0, 3.0]) == 1.0
    assert metrics.spread_ms([5.0, 1.0, 2.0, 4.0, 3.0]) == 2.0


def test_errors_count_by_their_size():
    assert metrics.absolute_errors([-0.25]) == (0.25, 0.25)
    assert metrics.absolute_errors([0.0, -1.0]) == pytest.approx((0.5, 0.95))
    assert metrics.absolute_errors([n * (-1) ** n for n in range(101)]) == pytest.approx((50, 95))


def prompt(tokens, efficiency, replan_ms=0.0) -> Prompt:
    return Prompt([50.0, 100.0], tokens, [1.0, 2.0], [1.0, 2.0], efficiency, replan_ms)


def test_an_adapting_run_is_judged_by_all_its_time():
    prompts = [prompt([5, 5], 0.5), prompt([3, 7], 1.0, 2.0), prompt([3, 7], 0.8)]
    whole = metrics.adaptation(prompts, [20.0, 10.0, 10.0])
    assert (whole.replans, whole.replan_ms, whole.total_ms) == (1, 2.0, 42.0)
    assert whole.capacity_efficiency == pytest.approx((0.5 * 20 + 1.0 * 10 + 0.8 * 10) / 40)
    assert metrics.with_last_plan(prompts) == 2
    part = metrics.adaptation([prompt([5, 5], 0.5), prompt([5, 5], None)], [20.0, 10.0])
    assert part.capacity_efficiency is None


def test_times_of_ranks_add_up_to_the_latency():
    hops = [
        HopTiming(0, wait_ms=0.0, compute_ms=3.0),
        HopTiming(1, wait_ms=1.0, compute_ms=1.0, transfer_ms=4.0),
        HopTiming(0, wait_ms=0.0, compute_ms=2.0, layer=1),
        HopTiming(1, wait_ms=0.5, compute_ms=0.5, transfer_ms=3.0, layer=1),
    ]
    slow = IterationTiming(12.0, 10.5, hops, [1.0, 2.0, 1.0])
    fast = IterationTiming(9.0, 4.0)
    figures = metrics.per_rank_medians([[slow, fast]])
    assert {name: values[0] for name, values in figures.items()} == {
        "busy_ms": 10.5,
        "linear_ms": 4.0,
        "attention_ms": 6.5,
        "wait_ms": 1.5,
        "comm_ms": 7.0,
        "idle_ms": 1.5,
    }
    assert figures["idle_ms"][1] == 8.0
    assert metrics.latency_ms([fast, slow]) == 12.0
    assert metrics.by_layer(slow) == [(1.0, 4.0, 1.0), (2.0, 2.5, 0.5), (1.0, 0.0, 0.0)]
