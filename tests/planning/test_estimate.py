"""Busy times as estimates of speed: noise is averaged, one odd prompt is nothing, two make a change."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.planning.estimate import FactorEstimate


def told(*factors: float) -> FactorEstimate:
    estimate = FactorEstimate()
    for factor in factors:
        estimate.observe(math.log(factor))
    return estimate


@given(st.floats(0.01, 100.0))
def test_one_odd_prompt_moves_nothing(odd):
    steady = [1.0] * 12
    once = told(*steady, odd, 1.0)
    if abs(math.log(odd)) > 0.1:
        assert once.level == pytest.approx(0.0, abs=1e-9)
    assert abs(once.level) < 0.02


@given(st.floats(0.05, 20.0).filter(lambda factor: abs(math.log(factor)) > 0.1))
def test_a_change_is_known_after_two_prompts(factor):
    changed = told(*[1.0] * 12, factor, factor)
    assert changed.level == pytest.approx(math.log(factor))
    assert changed.changed


def test_two_odd_prompts_that_differ_are_no_change():
    assert told(*[1.0] * 12, 2.0, 3.0).level == 0.0


def test_a_rank_that_falls_back_is_believed_at_once_and_one_that_comes_back_is_not():
    slow_again = told(*[1.0] * 8, 2.0, 2.0, 1.0, 1.0, 2.0)
    assert slow_again.level == pytest.approx(math.log(2.0))
    fast_again = told(*[1.0] * 8, 2.0, 2.0, 1.0)
    assert fast_again.level == pytest.approx(math.log(2.0))


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_noise_is_measured_and_averaged(noise):
    rng, estimates = random.Random(0), []
    for _ in range(50):
        estimate = FactorEstimate()
        for _ in range(60):
            estimate.observe(rng.gauss(0.0, noise) + (rng.uniform(0.4, 1.4) if rng.random() < 0.03 else 0.0))
        estimates.append(estimate)
    spread = (sum(each.level**2 for each in estimates) / len(estimates)) ** 0.5
    assert spread < 0.5 * noise
    assert sum(each.noise for each in estimates) / 50 == pytest.approx(noise, rel=0.35)
    assert spread == pytest.approx(sum(each.error for each in estimates) / 50, rel=0.5)


@given(st.lists(st.floats(1e-3, 1e3), max_size=40))
def test_it_is_a_function_of_what_was_seen_and_stays_within_it(factors):
    estimate = told(*factors)
    assert estimate.level == told(*factors).level
    assert min([1.0, *factors]) * 0.999 <= math.exp(estimate.level) <= max([1.0, *factors]) * 1.001
