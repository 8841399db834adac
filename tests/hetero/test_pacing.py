from __future__ import annotations

import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringexp.hetero.pacing import Pacer


class Time:
    """A clock that moves only when somebody sleeps; every sleep lasts longer than asked."""

    def __init__(self, late_s: float = 0.0, seed: int = 0) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []
        self._late_s = late_s
        self._random = random.Random(seed)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds + (self._late_s * self._random.random() if seconds else 1e-6)

    def pacer(self, percentage: float) -> Pacer:
        return Pacer(percentage, clock=self.clock, sleep=self.sleep)


@pytest.mark.parametrize(("percentage", "waits_s"), [(50, 1.0), (25, 3.0), (10, 9.0), (80, 0.25)])
def test_compute_is_stretched_to_elapsed_over_share(percentage, waits_s):
    fake = Time()
    fake.pacer(percentage).settle(1.0)
    assert fake.now == pytest.approx(waits_s, abs=2e-6)


def test_full_speed_never_waits():
    fake = Time()
    fake.pacer(100).settle(1.0)
    assert fake.sleeps == []


def test_the_end_of_a_wait_is_spun():
    fake = Time()
    fake.pacer(50).settle(0.010)
    assert fake.sleeps[0] == pytest.approx(0.0097)
    assert len(fake.sleeps) > 100
    assert set(fake.sleeps[1:]) == {0}


def test_a_wait_shorter_than_the_spin_is_only_spun():
    fake = Time()
    fake.pacer(50).settle(100e-6)
    assert set(fake.sleeps) == {0}
    assert fake.now == pytest.approx(100e-6, abs=2e-6)


@settings(max_examples=30)
@given(
    st.lists(st.floats(1e-5, 3e-3), min_size=1, max_size=30),
    st.sampled_from([50.0, 25.0, 10.0]),
    st.integers(0, 100),
)
def test_late_wakeups_are_made_up_for(stretches, percentage, seed):
    late_s = 5e-3
    fake = Time(late_s, seed)
    pacer = fake.pacer(percentage)
    for elapsed_s in stretches:
        pacer.settle(elapsed_s)
        # at any moment, not only in the end: never short, never late by more than one wake-up
    asked = sum(stretches) * (100 / percentage - 1)
    assert -1e-9 <= fake.now - asked <= late_s + 2e-6


def test_real_time_at_50_percent_is_double_at_least():
    pacer = Pacer(50)
    began = time.perf_counter()
    for _ in range(20):
        time.sleep(0.005)
        pacer.settle(0.005)
    assert time.perf_counter() - began >= 0.2


def test_other_threads_run_while_it_waits():
    done = threading.Event()
    worker = threading.Thread(target=lambda: (sum(range(100_000)), done.set()))
    pacer = Pacer(10)
    worker.start()
    pacer.settle(0.05)
    assert done.is_set()
    worker.join()
