"""The timeline: nothing overlaps on a track of computing, and all of an iteration is there."""

import json
from itertools import pairwise

import pytest

from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.tracking.trace import chrome_trace

ITERATION = [
    IterationTiming(
        10.0, 7.5, [HopTiming(0, 0.5, 2.0), HopTiming(1, 2.0, 4.0, 2.5, 0.5, layer=1)], [0.5, 0.25, 0.75]
    ),
    IterationTiming(9.0, 9.0, [HopTiming(1, 0.0, 5.0), HopTiming(0, 0.0, 3.0, 1.0, 0.75)], [0.75, 0.25]),
]


def stretches(trace, rank, track):
    return [e for e in trace["traceEvents"] if (e["ph"], e["pid"], e["tid"]) == ("X", rank, track)]


@pytest.mark.parametrize("rank", [0, 1])
def test_computing_and_waiting_follow_each_other_without_gaps(rank):
    trace = json.loads(json.dumps(chrome_trace([ITERATION, ITERATION])))
    found = stretches(trace, rank, 0)
    for index in (0, 1):
        mine = [e for e in found if e["args"]["iteration"] == index]
        assert mine[0]["ts"] == index * 10_000  # after the slowest rank of the iteration before
        for before, after in pairwise(mine):
            assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
        assert sum(e["dur"] for e in mine) == pytest.approx(ITERATION[rank].latency_ms * 1e3)


def test_transfers_lie_where_they_began():
    trace = chrome_trace([ITERATION])
    (transfer,) = stretches(trace, 0, 1)
    assert (transfer["name"], transfer["ts"], transfer["dur"]) == ("from rank 1", 500, 2500)
