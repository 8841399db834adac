"""Signals: the first ends in good order, what is closing is not torn."""

import os
import signal

import pytest

from ringexp.errors import Interrupted
from ringexp.interrupts import SIGNALS, Interrupts, undisturbed


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_a_signal_raises_and_handlers_come_back(signum):
    if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
        pytest.skip("the tests run under nohup, which ignores SIGHUP")
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted, match=f"{signum.name} to the launcher"), Interrupts(again=lambda: None):
        os.kill(os.getpid(), signum)
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("once", [True, False])
def test_what_a_further_signal_does(once):
    calls: list[str] = []
    with Interrupts(again=lambda: calls.append("again"), once=once) as interrupts:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
        if not once:
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGINT)
            interrupts.closing()
        os.kill(os.getpid(), signal.SIGTERM)
    assert calls == ["again"]


def test_handlers_of_a_library_are_replaced():
    with Interrupts(again=lambda: None) as interrupts:
        signal.signal(signal.SIGTERM, lambda *_: None)
        interrupts.install()
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts(again=lambda: None):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_short_block_is_not_disturbed():
    before = signal.getsignal(signal.SIGTERM)
    with undisturbed():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
