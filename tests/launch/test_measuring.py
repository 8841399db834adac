"""How many iterations go before those that count, and whose speed is a whole device's."""

import pytest

from ringexp.launch.job import MOST_WARM, enough_warmup
from ringexp.tracking.metrics import capacity_efficiency, full_speed


@pytest.mark.parametrize(
    ("asked", "device", "latency_ms", "untimed"),
    [
        (2, "cuda", 40.0, 8),
        (2, "cuda", 3500.0, 2),
        (2, "cuda", 0.2, MOST_WARM),
        (60, "cuda", 0.2, 60),
        (0, "cuda", 40.0, 0),
        (2, "cpu", 40.0, 2),
    ],
)
def test_a_gpu_is_warm_when_time_has_passed(asked, device, latency_ms, untimed):
    assert enough_warmup(asked, device, latency_ms) == untimed


def test_full_speed_is_that_of_ranks_at_100_percent():
    assert full_speed([600.0, 640.0, 300.0], [100, 100, 50]) == 620
    assert full_speed([600.0, 300.0], [66, 33]) is None
    assert full_speed([600.0, 300.0], []) is None


def test_equal_ranks_that_lose_nothing_halve_the_time_of_one():
    assert capacity_efficiency(50.0, [600.0, 600.0], 100.0, full_speed([600.0, 600.0], [100, 100])) == 1
