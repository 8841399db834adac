"""Clean up after a launcher, however it ends."""

from __future__ import annotations

import atexit
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def cleaned_up(clean: Callable[[], None], script: str, *arguments: str) -> Iterator[None]:
    """Call `clean()` after the block, also on exceptions and at interpreter exit.

    If this process is killed, a script cleans up in its place. SIGTERM must raise an exception, or `clean` is
    not called.

    Args:
        clean: cleans up; it may be called twice.
        script: a Python file that needs the standard library only. It runs in a process of its own, has to
            wait for its stdin to close, and then cleans up.
        *arguments: the script's arguments.
    """
    atexit.register(clean)
    watchdog = subprocess.Popen(
        [sys.executable, "-I", "-S", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # out of reach of Ctrl-C and of signals to the launcher's group
    )
    try:
        yield
    finally:
        clean()
        atexit.unregister(clean)
        _end(watchdog)


def _end(watchdog: subprocess.Popen[bytes]) -> None:
    assert watchdog.stdin is not None
    watchdog.stdin.close()
    try:
        watchdog.wait(timeout=10)
    except subprocess.TimeoutExpired:
        watchdog.kill()
        watchdog.wait()
