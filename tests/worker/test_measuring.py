"""The number of iterations before those that count, and the ranks whose speed is a whole device's."""

import gc

import pytest

from ringexp.tracking.metrics import capacity_efficiency, full_speed, with_last_plan
from ringexp.tracking.results import Prompt
from ringexp.worker.measure import MOST_WARM, enough_warmup, short_collections


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


@pytest.mark.parametrize(
    ("plans", "settled"), [([[1, 3]], 1), ([[1, 3], [2, 2], [2, 2]], 2), ([[2, 2], [1, 3], [2, 2]], 1)]
)
def test_a_plan_is_judged_by_the_prompts_it_ran_last(plans, settled):
    assert with_last_plan([Prompt([100, 50], tokens, [1.0, 1.0], None, None) for tokens in plans]) == settled


def test_collections_pass_over_what_was_there_before():
    gc.unfreeze()
    before = len(gc.get_objects())
    with short_collections():
        assert len(gc.get_objects()) < before / 10
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() >= 1  # what is new is still collected
    assert gc.get_freeze_count() == 0


def test_after_an_error_all_is_collected_again():
    with pytest.raises(ZeroDivisionError), short_collections():
        _ = 1 / 0
    assert gc.get_freeze_count() == 0
