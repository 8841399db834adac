"""Handle Ctrl-C, SIGTERM and SIGHUP: the first ends a run cleanly, a second one at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from ringexp.errors import Interrupted

EXIT_CODE = 130
"""The exit code of a command that was interrupted, by whichever signal."""

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None
"""A signal's handler, as the signal module has it."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

TAKEN_BY_TORCH = (*SIGNALS, signal.SIGQUIT)
"""Signals for which torch sets handlers as it starts ranks, and keeps them."""


class Interrupts:
    """Handle the three signals for the time of a block, in the main thread.

    A signal raises Interrupted; after a call of `closing` it calls `again` in place of that, so that a clean
    end is not interrupted. A process that ignores SIGHUP (nohup) goes on ignoring it. After the block all
    signals have their former handlers, also those that torch has changed in between.
    """

    def __init__(self, again: Callable[[], None], once: bool = False) -> None:
        """Prepare the handlers; entering the block sets them.

        Args:
            again: called by signals after `closing`.
            once: only the first signal raises; later ones call `again`.
        """
        self._again, self._once = again, once
        self._closing = False
        self._before: dict[signal.Signals, Handler] = {}

    def closing(self) -> None:
        """Let every signal call `again` from here on."""
        self._closing = True

    def install(self) -> None:
        """Set the handlers again, after a library has set its own."""
        for signum in SIGNALS:
            if signum in self._before and (signum != signal.SIGHUP or self._before[signum] != signal.SIG_IGN):
                signal.signal(signum, self._handle)

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.getsignal(signum) for signum in TAKEN_BY_TORCH}
            self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before if before is not None else signal.SIG_DFL)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._closing:
            self._again()
            return
        self._closing = self._once
        raise Interrupted(f"{signal.Signals(signum).name} to the launcher")


def raise_on(reasons: Mapping[signal.Signals, str], once: bool = False) -> None:
    """Make each of these signals raise Interrupted from here on.

    Args:
        reasons: what Interrupted says, for each signal.
        once: ignore all of these signals after the first one.
    """

    def handle(signum: int, frame: FrameType | None) -> None:
        if once:
            for signal_of_ours in reasons:
                signal.signal(signal_of_ours, signal.SIG_IGN)
        raise Interrupted(reasons[signal.Signals(signum)])

    for signum in reasons:
        signal.signal(signum, handle)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore the three signals for the time of a short block that must not be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an interrupt is the cause of an exception. Python wraps it while it makes a class."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def end_interrupted(message: str) -> NoReturn:
    """Print one line and end the process at once with `EXIT_CODE`.

    After an interrupt inside exec(), as dataclasses use it, Python would end with a signal in place of the
    code that sys.exit was given.
    """
    print(message, file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
