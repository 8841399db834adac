"""Pacing: emulate a slower processor by waiting after each stretch of compute.

pacer = Pacer(50)
pacer.settle(elapsed_s)  # after compute that took elapsed_s: waits as long again
"""

from __future__ import annotations

import time
from collections.abc import Callable

SPIN_S = 0.3e-3  # the end of a wait that is spun: the kernel wakes a sleeper later than asked


class Pacer:
    """Stretch the compute of one thread by 100 / `percentage`. At 100 it never waits.

    A wait sleeps, then yields in a loop. Both release the GIL, so other threads of the rank go on. The next
    waits correct one that was too long or too short, so in the long run the factor is exact.
    """

    def __init__(
        self,
        percentage: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.change(percentage)
        self._clock = clock
        self._sleep = sleep
        self._owed_s = 0.0  # negative: earlier waits were too long

    def change(self, percentage: float) -> None:
        """Stretch by another percentage from here on. Waits that are still owed stay owed."""
        self._wait_per_s = 100.0 / percentage - 1.0

    def settle(self, elapsed_s: float) -> None:
        """Wait until `elapsed_s` seconds of compute have lasted as long as on the emulated processor."""
        self._owed_s += elapsed_s * self._wait_per_s
        if self._owed_s <= 0.0:
            return
        began = self._clock()
        if self._owed_s > SPIN_S:
            self._sleep(self._owed_s - SPIN_S)
        while (waited_s := self._clock() - began) < self._owed_s:
            self._sleep(0)
        self._owed_s -= waited_s
