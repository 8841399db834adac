"""When a measurement stops, and that what it says of the median is true."""

import random
from itertools import count

import pytest

from ringexp.calibration.measure import StoppingRule, calibration_lengths, measure_speed, median_error

RULE = StoppingRule(min_samples=5, min_seconds=0.1, max_seconds=1.0, precision=0.01)


def measured(times_ms, rule=RULE, warm=False):
    """`measure_speed` of a piece that takes these times, on a clock that knows no others."""
    now, source = [0.0], iter(times_ms)

    def timed() -> float:
        took = next(source)
        now[0] += took / 1e3
        return took

    return measure_speed(
        timed,
        1e9,
        rule=rule,
        start_together=lambda: None,
        finish_together=lambda: True,
        warm=warm,
        clock=lambda: now[0],
    )


def test_steady_work_is_over_after_the_least_that_is_asked():
    assert measured(100.0 for _ in count()).samples == 5
    assert measured(1.0 for _ in count()).samples == pytest.approx(100, abs=1)


def test_noisy_work_is_measured_until_time_is_up():
    noise = random.Random(0)
    assert measured(10 * (1 + noise.random()) for _ in count()).samples == pytest.approx(67, abs=10)


def test_a_little_noise_is_averaged_away_before_that():
    noise = random.Random(0)
    sample = measured(10 * (1 + 0.03 * noise.random()) for _ in count())
    assert 10 <= sample.samples < 90
    assert sample.time_ms == pytest.approx(10.15, rel=0.01)


def test_long_samples_that_agree_need_no_third():
    assert measured([3000.0, 3010.0, 3020.0]).samples == 2


def test_long_samples_that_differ_are_as_many_as_asked():
    assert measured([3000.0, 3500.0, 3010.0, 2900.0, 3400.0, 3000.0, 3000.0]).samples == 5


def test_one_sample_is_enough_only_if_asked():
    assert measured([3000.0, 3000.0], StoppingRule(1, 0.1, 1.0, 0.01), warm=True).samples == 1
    assert measured([3000.0, 3000.0], warm=True).samples == 2


def test_work_that_has_run_before_is_not_run_untimed():
    assert measured([100.0] * 5, warm=True).samples == 5
    with pytest.raises(StopIteration):  # there is no sixth
        measured([100.0] * 5)


def test_a_slow_start_is_not_counted():
    assert measured([500.0, *[100.0] * 10]).time_ms == 100.0


def test_work_that_slows_down_within_the_least_time_shows_it():
    assert measured([1.0] * 30 + [2.0] * 1000).time_ms == 2.0


@pytest.mark.parametrize("num_samples", [6, 11, 40, 200])
def test_the_true_median_is_within_the_error_95_times_of_100(num_samples):
    noise = random.Random(num_samples)
    hits = 0
    for _ in range(1000):
        times = [1 + noise.expovariate(1) for _ in range(num_samples)]
        middle = sorted(times)[num_samples // 2]
        hits += abs(middle - (1 + 0.6931)) <= median_error(times) * middle + 1e-9
    assert hits >= 940


def test_lengths_are_powers_of_two_that_runs_share():
    assert calibration_lengths(4096, for_fit=False) == [4096]
    assert calibration_lengths(5000, for_fit=True) == [1024, 2048, 4096, 8192]
