"""Planning anew, against machines whose speeds change in every way there is a profile for."""

import math
import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringexp.hetero.drift import DriftConfig, percentages_at
from support.drifting import COST, SEQ_LEN, TILE, busy_ms, planner, simulate

LAYOUTS = ("zigzag", "contiguous")


def drifting(kind, start, to, at=10, over=10):
    drift = DriftConfig(kind, list(to), at, over)
    return lambda prompt: percentages_at(drift, start, prompt)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("start", "to"),
    [((100, 100), (100, 50)), ((100, 100), (25, 100)), ((100, 70, 40), (50, 70, 80)), ((50, 50), (50, 40))],
)
def test_a_step_is_followed_within_three_prompts(layout, start, to):
    for seed in range(5):
        course = simulate(drifting("step", start, to), 20, noise=0.01, seed=seed, layout=layout)
        assert min(course.efficiency[:10]) > 0.95
        assert min(course.efficiency[12:]) > 0.95


@pytest.mark.parametrize("noise", [0.03, 0.05])
def test_a_step_is_followed_under_noise_too(noise):
    step = drifting("step", (100, 100), (100, 50))
    after = [simulate(step, 20, noise=noise, outliers=0.02, seed=seed).efficiency for seed in range(11)]
    assert median(part for each in after for part in each[12:]) > 0.95


@pytest.mark.parametrize("to", [(100, 50), (100, 25)])
def test_a_recovery_is_followed_as_quickly(to):
    course = simulate(drifting("recovery", (100, 100), to), 30, noise=0.01)
    assert min(course.efficiency[12:20]) > 0.95
    assert min(course.efficiency[23:]) > 0.95


def test_a_ramp_is_followed_all_the_way():
    course = simulate(drifting("ramp", (100, 100), (100, 50)), 40, noise=0.01)
    assert min(course.efficiency) > 0.8
    assert median(course.efficiency[30:]) > 0.95


@pytest.mark.parametrize("percentages", [(100, 100), (100, 50), (100, 100, 50, 25)])
@pytest.mark.parametrize("noise", [0.01, 0.03, 0.05])
def test_a_steady_machine_keeps_its_plan(percentages, noise):
    """One busy time in 50 is an outlier."""
    for seed in range(6):
        course = simulate(lambda _: percentages, 40, noise=noise, outliers=0.01, seed=seed)
        assert course.replans == []


def test_costs_that_are_wrong_from_the_start_are_soon_put_right():
    """Such costs arise if a GPU is at its power limit during calibration, but not in the run."""
    adaptive, rng = planner([COST, COST]), random.Random(0)
    for _ in range(6):
        busy = busy_ms([COST, COST], adaptive.plan)
        factors = [factor * math.exp(rng.gauss(0, 0.002)) for factor in (0.91, 1.0)]
        adaptive.observe([ms * factor for ms, factor in zip(busy, factors, strict=True)])
    assert adaptive.plan.tokens[0] > adaptive.plan.tokens[1]


@pytest.mark.parametrize("slow", [50, 25])
@pytest.mark.parametrize("over", [1, 2, 3, 4, 6, 9, 15])
def test_flapping_costs_little_over_the_best_plan_that_stays(over, slow):
    # One prompt at a quarter of the speed, one at all of it: what the first twelve cost still weighs here.
    course = simulate(drifting("flapping", (100, 100), (100, slow), at=8, over=over), 120, noise=0.01)
    assert course.loss() < (0.025 if (over, slow) == (1, 25) else 0.02)


def test_flapping_too_fast_to_follow_settles_on_one_plan():
    course = simulate(drifting("flapping", (100, 100), (100, 50), at=8, over=1), 80, noise=0.02)
    assert len(course.replans) <= 2
    assert course.loss() < 0.02


def test_slow_flapping_is_followed_and_beats_every_plan_that_stays():
    course = simulate(drifting("flapping", (100, 100), (100, 50), at=8, over=12), 120, noise=0.02)
    assert course.loss() < -0.05


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([100, 70, 50, 25]), min_size=2, max_size=4),
    st.sampled_from(["step", "ramp", "flapping", "recovery"]),
    st.sampled_from(LAYOUTS),
    st.integers(1, 8),
    st.data(),
)
def test_every_plan_is_whole_and_keeps_to_the_ranks_memory(start, kind, layout, over, data):
    to = data.draw(st.lists(st.sampled_from([100, 50, 20]), min_size=len(start), max_size=len(start)))
    room = [SEQ_LEN // len(start) + 512] * len(start)
    course = simulate(drifting(kind, start, to, at=3, over=over), 16, noise=0.02, layout=layout, room=room)
    for plan in course.plans:
        assert sum(plan.tokens) == SEQ_LEN
        assert all(count <= most for count, most in zip(plan.tokens, room, strict=True))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(1.0, 500.0), st.floats(1.0, 500.0), st.floats(1.0, 500.0)), max_size=25))
def test_equal_busy_times_give_equal_plans(prompts):
    ranks = [planner([COST] * 3) for _ in range(2)]
    for busy in prompts:
        plans = [each.observe(busy).tokens for each in ranks]
        assert plans[0] == plans[1]


def test_a_rank_left_out_is_tried_again_and_comes_back():
    """Rank 1 is so slow that a tile does not pay, then as fast as rank 0."""
    course = simulate(lambda prompt: (100, 100) if prompt < 5 or prompt > 20 else (100, 0.5), 60)
    assert course.plans[15].tokens[1] == 0
    assert TILE in {plan.tokens[1] for plan in course.plans}
    assert course.efficiency[-1] > 0.95


def test_a_rank_that_stays_slow_is_tried_ever_less_often():
    course = simulate(lambda prompt: (100, 100) if prompt < 5 else (100, 0.5), 200)
    tried = [prompt for prompt in course.replans if course.plans[prompt].tokens[1] == TILE]
    assert 1 <= len(tried) <= 4
    assert median(course.efficiency[7:]) == pytest.approx(1.0)


def test_a_plan_that_is_dear_to_change_stays_for_small_gains():
    cheap, dear = (planner([COST, COST]) for _ in range(2))
    for _ in range(6):
        busy = [26.0, 27.5 if cheap.plan.tokens[1] == dear.plan.tokens[1] else 26.0]
        cheap.observe(busy)
        dear.observe(busy, replan_ms=200.0)
    assert dear.plan.tokens == [SEQ_LEN // 2] * 2
