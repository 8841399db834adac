"""The clock separates computing from waiting, and paces what was computed."""

import time

import pytest
import torch

from ringexp.ring.clock import CpuClock
from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.tracking.metrics import attention_ms, by_layer, linear_ms, wait_ms


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
    clock.attended()
    clock.stop()
    assert len(pacer.settled) == 4
    assert max(pacer.settled) < 0.02


def test_linear_layers_are_told_from_attention():
    clock = CpuClock(CountingPacer())
    clock.start()
    for _ in range(2):  # layers
        time.sleep(0.03)
        for source in (1, 0):
            with clock.waiting(source):
                pass
            time.sleep(0.06)
        clock.attended()
    time.sleep(0.09)
    clock.stop()
    timing = clock.read()
    assert [(hop.layer, hop.source) for hop in timing.hops] == [(0, 1), (0, 0), (1, 1), (1, 0)]
    assert min(hop.compute_ms for hop in timing.hops) >= 60
    assert [round(ms >= bound) for ms, bound in zip(timing.linear_ms, (30, 30, 90), strict=True)] == [1, 1, 1]
    assert timing.busy_ms == pytest.approx(linear_ms(timing) + attention_ms(timing))
    layers = by_layer(timing)
    assert [sum(parts) for parts in zip(*layers, strict=True)] == pytest.approx(
        [linear_ms(timing), attention_ms(timing), wait_ms(timing)]
    )
    assert layers[2][1:] == (0.0, 0.0)


def test_transfers_go_to_the_hops_of_other_ranks_in_order():
    timing = IterationTiming(9.0, 8.0, [HopTiming(1, 0, 3), HopTiming(0, 1, 3), HopTiming(2, 0, 2)])
    filled = timing.with_transfers([(0.1, 0.5), (0.6, 0.7)], rank=1)
    assert [(hop.transfer_start_ms, hop.transfer_ms) for hop in filled.hops] == [
        (0, 0),
        (0.1, 0.5),
        (0.6, 0.7),
    ]


def test_what_a_kernel_waited_itself_is_waiting_and_not_computing():
    clock = CpuClock(CountingPacer())
    clock.start()
    clock.takes([0, 1], torch.tensor([2000], dtype=torch.int32))
    time.sleep(0.01)
    clock.attended()
    time.sleep(0.002)
    clock.stop()
    timing = clock.read()
    own, other = timing.hops
    assert own == HopTiming(0, 0, 0)
    assert other.wait_ms == pytest.approx(2, abs=0.5)
    assert other.compute_ms >= 8
    assert timing.latency_ms == pytest.approx(timing.busy_ms + own.wait_ms + other.wait_ms)
    assert timing.linear_ms[1] >= 2
