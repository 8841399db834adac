"""The clock separates computing from waiting, and paces what was computed."""

import time

from ringexp.ring.clock import CpuClock
from ringexp.ring.timing import HopTiming, IterationTiming


class CountingPacer:
    def __init__(self):
        self.settled = []

    def settle(self, elapsed_s):
        self.settled.append(elapsed_s)


def test_waiting_is_not_busy():
    clock = CpuClock(CountingPacer())
    clock.start()
    with clock.waiting(1):
        time.sleep(0.05)
    clock.stop()
    timing = clock.read()
    assert timing.hops[0].wait_ms >= 50
    assert timing.busy_ms < 40
    assert timing.latency_ms >= 50


def test_every_stretch_of_compute_is_paced_and_no_wait_is():
    pacer = CountingPacer()
    clock = CpuClock(pacer)
    clock.start()
    for source in (0, 1):
        with clock.waiting(source):
            time.sleep(0.02)
    clock.stop()
    assert len(pacer.settled) == 3
    assert max(pacer.settled) < 0.02


def test_transfers_go_to_the_hops_of_other_ranks_in_order():
    timing = IterationTiming(9.0, 8.0, [HopTiming(1, 0, 3), HopTiming(0, 1, 3), HopTiming(2, 0, 2)])
    filled = timing.with_transfers([(0.1, 0.5), (0.6, 0.7)], rank=1)
    assert [(hop.transfer_start_ms, hop.transfer_ms) for hop in filled.hops] == [
        (0, 0),
        (0.1, 0.5),
        (0.6, 0.7),
    ]
