"""Ranks that have ended leave the launcher's signal handlers as they were."""

import signal

from ringexp.launch.local import _signals_given_back


def test_handlers_that_were_taken_are_given_back():
    def other(signum, frame):
        raise AssertionError

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with _signals_given_back():
        for signum in before:
            signal.signal(signum, other)
    assert {signum: signal.getsignal(signum) for signum in before} == before
