"""The clock separates computing from waiting, and paces what was computed."""

from types import SimpleNamespace

import pytest
import torch

from ringexp.ring.clock import CpuClock, CudaClock
from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.tracking.metrics import attention_ms, by_layer, linear_ms, wait_ms


@pytest.fixture
def passes(monkeypatch):
    """Return a function that lets seconds pass. No other time passes, however busy the machine is."""
    now = [100.0]

    def let_pass(seconds):
        now[0] += seconds

    monkeypatch.setattr("ringexp.ring.clock.time", SimpleNamespace(perf_counter=lambda: now[0]))
    return let_pass


class CountingPacer:
    def __init__(self):
        self.settled = []

    def settle(self, elapsed_s):
        self.settled.append(elapsed_s)


def test_waiting_is_not_busy(passes):
    clock = CpuClock(CountingPacer())
    clock.start()
    passes(0.01)
    with clock.waiting(1):
        passes(0.05)
    passes(0.02)
    clock.stop()
    timing = clock.read()
    assert timing.hops[0].wait_ms == pytest.approx(50)
    assert timing.busy_ms == pytest.approx(30)
    assert timing.latency_ms == pytest.approx(80)


def test_every_stretch_of_compute_is_paced_and_no_wait_is(passes):
    pacer = CountingPacer()
    clock = CpuClock(pacer)
    clock.start()
    for source in (0, 1):
        passes(0.001)
        with clock.waiting(source):
            passes(0.02)
    passes(0.003)
    clock.attended()
    passes(0.004)
    clock.stop()
    assert pacer.settled == pytest.approx([0.001, 0.001, 0.003, 0.004])


def test_linear_layers_are_told_from_attention(passes):
    clock = CpuClock(CountingPacer())
    clock.start()
    for _ in range(2):  # layers
        passes(0.03)
        for source in (1, 0):
            with clock.waiting(source):
                pass
            passes(0.06)
        clock.attended()
    passes(0.09)
    clock.stop()
    timing = clock.read()
    assert [(hop.layer, hop.source) for hop in timing.hops] == [(0, 1), (0, 0), (1, 1), (1, 0)]
    assert [hop.compute_ms for hop in timing.hops] == pytest.approx([60] * 4)
    assert timing.linear_ms == pytest.approx([30, 30, 90])
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


def test_what_a_kernel_waited_itself_is_waiting_and_not_computing(passes):
    clock = CpuClock(CountingPacer())
    clock.start()
    clock.computes_with([0, 1], torch.tensor([2000], dtype=torch.int32))
    passes(0.01)
    clock.attended()
    passes(0.002)
    clock.stop()
    timing = clock.read()
    own, other = timing.hops
    assert own == HopTiming(0, 0, 0)
    assert other.wait_ms == pytest.approx(2)
    assert other.compute_ms == pytest.approx(8)
    assert timing.latency_ms == pytest.approx(timing.busy_ms + own.wait_ms + other.wait_ms)
    assert timing.linear_ms == pytest.approx([0, 2])


class Recorded:
    """An event, 1 ms after the one before."""

    count = 0

    def __init__(self):
        Recorded.count += 1
        self._number = Recorded.count

    def elapsed_time(self, other):
        return float(other._number - self._number)

    def synchronize(self): ...


@pytest.mark.parametrize(
    ("only_attention", "events", "linear"), [(False, 6, [1, 1, 1]), (True, 3, [0, 0, 0])]
)
def test_events_are_recorded_where_something_is_computed(monkeypatch, only_attention, events, linear):
    """Around two attentions and, if there is anything, outside of them."""
    monkeypatch.setattr("ringexp.ring.clock.recorded", Recorded)
    Recorded.count = 0
    clock = CudaClock(only_attention)
    clock.start()
    for _ in range(2):
        clock.computes_with([0, 1])
        clock.attended()
    clock.stop()
    timing = clock.read()
    assert Recorded.count == events
    assert timing.linear_ms == linear
    assert [hop.compute_ms for hop in timing.hops] == [0, 1, 0, 1]
    assert timing.latency_ms == timing.busy_ms == sum(linear) + 2


def test_a_wait_begins_and_ends_with_an_event(monkeypatch):
    monkeypatch.setattr("ringexp.ring.clock.recorded", Recorded)
    Recorded.count = 0
    clock = CudaClock(only_attention=True)
    clock.start()
    clock.computes_with([0])
    with clock.waiting(1):
        pass
    clock.attended()
    clock.stop()
    assert clock.read() == IterationTiming(3, 2, [HopTiming(0, 0, 1), HopTiming(1, 1, 1)], [0, 0])
    assert Recorded.count == 4


def test_a_transfer_that_begins_with_its_attention():
    hops = [HopTiming(0, 0, 3, layer=0), HopTiming(1, 1, 2, layer=0), HopTiming(0, 0, 4, layer=1)]
    timing = IterationTiming(17.0, 16.0, [*hops, HopTiming(1, 0, 1, layer=1)], [1, 2, 3])
    filled = timing.with_transfers([(None, 0.5), (None, 0.75)], rank=0)
    assert [(hop.transfer_start_ms, hop.transfer_ms) for hop in filled.hops] == [
        (0, 0),
        (1, 0.5),
        (0, 0),
        (9, 0.75),
    ]
