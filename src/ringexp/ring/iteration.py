"""One iteration of a rank's work, run again and again: eagerly, or as one CUDA graph.

    iteration = Iteration(lambda: workload.forward(local, ring), ring)
    iteration.capture()                      # optional: from here on the graph is replayed
    output, timing = iteration.run()

A graph removes the host from between the kernels, which is most of the time of a short prompt.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ringexp.ring.context import RingContext
from ringexp.ring.events import recorded
from ringexp.ring.timing import IterationTiming
from ringexp.ring.transfers import Transfer
from ringexp.ring.transport import Transport

T = TypeVar("T")

HEAD_START_CYCLES = 300_000
"""Of the GPU, .15 ms: longer than hosts take from a barrier among them until each has launched its graph."""


class Iteration:
    """`work` is what `ring` takes part in; all ranks call `capture` and `run` in step."""

    def __init__(self, work: Callable[[], torch.Tensor], ring: RingContext) -> None:
        self._work, self._ring = work, ring
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured: tuple[torch.Tensor, list[Transfer]] | None = None

    def line_up(self) -> None:
        """Have no rank begin what comes next, `run` for one, before all are there; call it after a barrier.

        A graph is launched while the GPU still waits: so the ranks begin together, whenever their hosts do.
        """
        if self._graph is not None:
            torch.cuda._sleep(HEAD_START_CYCLES)
        self._ring.transport.barrier()

    def run(self) -> tuple[torch.Tensor, IterationTiming]:
        """The output, which the next run may overwrite, and what the clock and the transport saw."""
        if self._graph is None or self._captured is None:
            output, transfers = self._perform()
        else:
            self._graph.replay()
            torch.cuda.current_stream().synchronize()
            output, transfers = self._captured
        timing = self._ring.clock.read()
        origin = self._ring.clock.origin
        return output, timing.with_transfers([transfer(origin) for transfer in transfers], self._ring.rank)

    def capture(self, warm: bool = False) -> None:
        """Replay a CUDA graph in later runs.

        warm: the work has been done before. Else it is done twice here: once to warm up, once to try.
        """
        if not warm:
            self.run()
        torch.cuda.synchronize()
        self._graph, self._captured = captured(self._perform)
        if not warm:
            self.run()

    def back_to_back_ms(self, count: int) -> float:
        """Time of one of `count` runs that nothing separates, as the layers of a model follow each other.

        Lined up before the first.
        """
        self.line_up()
        stop = _stopwatch()
        for _ in range(count):
            if self._graph is None:
                self._perform()
            else:
                self._graph.replay()
        return stop() / count

    def _perform(self) -> tuple[torch.Tensor, list[Transfer]]:
        self._ring.clock.start()
        output = self._work()
        self._ring.clock.stop()
        return output, self._ring.transport.transfers.take()


class Repeated:
    """Work on one tensor, done again and again on the same memory: eagerly, or as a CUDA graph.

    A graph is captured right after the first time, and anew once what it points to has moved or the transport
    is another one.
    """

    def __init__(self) -> None:
        self._input: torch.Tensor | None = None
        self._graph: tuple[torch.cuda.CUDAGraph, Any] | None = None
        self._made_for: tuple[Transport, int] | None = None  # and its epoch

    def __call__(self, x: torch.Tensor, work: Callable[[torch.Tensor], T], transport: Transport | None) -> T:
        """`work(x)`, which the next call may overwrite; in a graph if the transport of the work is given.

        All work has to be the same, but for what is in device memory.
        """
        if self._input is None:
            self._input = torch.empty_like(x)
        mine = self._input.copy_(x)
        if transport and self._graph and self._made_for == (transport, transport.memory.epoch):
            graph, output = self._graph
            graph.replay()
            return output
        output = work(mine)
        if transport:
            self._graph, self._made_for = captured(lambda: work(mine)), (transport, transport.memory.epoch)
        return output

    def renew(self) -> None:
        """Memory that the work points to has moved."""
        self._made_for = None


def captured(work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """`work` as a CUDA graph, and what it returned while it was captured; do it once before."""
    graph = torch.cuda.CUDAGraph()
    # A green context's stream is current where it limits this rank, and only on it is a graph limited.
    current = torch.cuda.current_stream()
    stream = current if current != torch.cuda.default_stream() else torch.cuda.Stream()
    collects = gc.isenabled()
    gc.disable()  # a graph that the collector destroyed meanwhile would spoil this one
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = work()
    finally:
        if collects:
            gc.enable()
    return graph, result


def _stopwatch() -> Callable[[], float]:
    """Starts timing; the call that stops it returns milliseconds, after waiting for the current stream."""
    began = time.perf_counter()
    begun = recorded() if torch.cuda.is_initialized() else None

    def stop() -> float:
        if begun is None:
            return (time.perf_counter() - began) * 1e3
        ended = recorded()
        ended.synchronize()
        return begun.elapsed_time(ended)

    return stop
