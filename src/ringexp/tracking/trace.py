"""The iterations of a run as a timeline that chrome://tracing and ui.perfetto.dev open.

Each rank is a process, with a track of computing and waiting and one of transfers. Iterations begin with a
barrier, where the ranks' clocks are aligned. Each iteration follows the one before it without a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ringexp.ring.timing import IterationTiming
from ringexp.tracking import metrics

COMPUTE, TRANSFERS = 0, 1


def chrome_trace(iterations: Sequence[Sequence[IterationTiming]]) -> dict[str, object]:
    """Return the JSON object of the trace event format. iterations: timings, [iteration][rank]."""
    events: list[dict[str, object]] = []
    for rank in range(len(iterations[0]) if iterations else 0):
        events.append(_name("process_name", rank, 0, f"rank {rank}"))
        events.append(_name("thread_name", rank, COMPUTE, "computing"))
        events.append(_name("thread_name", rank, TRANSFERS, "transfers"))
    begin_ms = 0.0
    for index, ranks in enumerate(iterations):
        for rank, timing in enumerate(ranks):
            for track, name, start_ms, duration_ms in stretches(timing, rank):
                events.append(
                    {
                        "ph": "X",
                        "pid": rank,
                        "tid": track,
                        "name": name,
                        "ts": (begin_ms + start_ms) * 1e3,
                        "dur": duration_ms * 1e3,
                        "args": {"iteration": index},
                    }
                )
        begin_ms += metrics.latency_ms(ranks)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def stretches(timing: IterationTiming, rank: int) -> Iterator[tuple[int, str, float, float]]:
    """Yield (track, name, start, duration) of each thing that a rank did in an iteration, in ms."""
    now = 0.0
    for layer, linear_ms in enumerate(timing.linear_ms):
        yield COMPUTE, "linear layers", now, linear_ms
        now += linear_ms
        for hop in (hop for hop in timing.hops if hop.layer == layer):
            if hop.source != rank:
                yield TRANSFERS, f"from rank {hop.source}", hop.transfer_start_ms, hop.transfer_ms
            yield COMPUTE, f"wait for rank {hop.source}", now, hop.wait_ms
            now += hop.wait_ms
            yield COMPUTE, f"with rank {hop.source}'s keys and values", now, hop.compute_ms
            now += hop.compute_ms


def _name(what: str, rank: int, track: int, name: str) -> dict[str, object]:
    return {"ph": "M", "pid": rank, "tid": track, "name": what, "args": {"name": name}}
