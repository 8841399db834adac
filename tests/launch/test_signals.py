"""Ranks that have ended leave the launcher's signal handlers as they were."""

import signal

from ringexp.interrupts import TAKEN_BY_TORCH, Interrupts


def test_handlers_that_torch_took_are_given_back():
    def of_torch(signum, frame):
        raise AssertionError

    before = {signum: signal.getsignal(signum) for signum in TAKEN_BY_TORCH}
    with Interrupts(again=lambda: None):
        for signum in before:
            signal.signal(signum, of_torch)
    assert {signum: signal.getsignal(signum) for signum in before} == before
