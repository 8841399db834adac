"""Repeating one iteration of this rank's work, eagerly or as one CUDA graph.

    iteration = Iteration(lambda: workload.forward(local, ring), ring)
    iteration.capture()                      # optional: from here on the graph is replayed
    output, timing = iteration.run()

A graph removes the host from between the kernels, which is most of the time of a short prompt.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar, cast

import torch

from ringexp.ring.context import RingContext
from ringexp.ring.events import recorded
from ringexp.ring.timing import IterationTiming
from ringexp.ring.transfers import Transfer
from ringexp.ring.transport import Transport

T = TypeVar("T")

HEAD_START_CYCLES = 300_000
"""0.15 ms on the GPU. Hosts need less from a barrier among them until each has launched its graph."""


class Iteration:
    """Times `work`, which uses `ring`. All ranks call `capture` and `run` in step."""

    def __init__(self, work: Callable[[], torch.Tensor], ring: RingContext) -> None:
        self._work, self._ring = work, ring
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured: tuple[torch.Tensor, list[Transfer]] | None = None

    def line_up(self) -> None:
        """Let all ranks begin what follows, such as `run`, at one time. Call it after a barrier.

        The GPU waits while hosts launch their graphs, so the ranks begin together, whenever their hosts do.
        """
        if self._graph is not None:
            torch.cuda._sleep(HEAD_START_CYCLES)
        self._ring.transport.barrier()

    def run(self) -> tuple[torch.Tensor, IterationTiming]:
        """Return the output, which the next run may overwrite, and the timing with all transfers."""
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
        """Capture the work as a CUDA graph, which later runs replay.

        warm: The work has been done before. If not, it is done twice here: to warm up, and to try the graph.
        """
        if not warm:
            self.run()
        torch.cuda.synchronize()
        self._graph, self._captured = captured(self._perform)
        if not warm:
            self.run()

    def back_to_back_ms(self, count: int) -> float:
        """Return the time per run of `count` runs in a row, as the layers of a model follow each other.

        The ranks are lined up before the first.
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
    """Repeats work on one tensor, always in the same memory: eagerly, or as a CUDA graph.

    The graph is captured right after the first call, and again when memory that it points to has moved or
    another transport is used.
    """

    def __init__(self) -> None:
        self._input: torch.Tensor | None = None
        self._graph: tuple[torch.cuda.CUDAGraph, object] | None = None
        self._made_for: tuple[Transport, int] | None = None  # and its epoch

    def __call__(self, x: torch.Tensor, work: Callable[[torch.Tensor], T], transport: Transport | None) -> T:
        """Return `work(x)`, which the next call may overwrite.

        Args:
            x: The input; its content may differ from call to call.
            work: The same work in every call, except for the content of device memory.
            transport: The transport that the work uses, to run it as a graph; None: run it eagerly.
        """
        if self._input is None:
            self._input = torch.empty_like(x)
        x = self._input.copy_(x)
        if transport and self._graph and self._made_for == (transport, transport.memory.epoch):
            graph, output = self._graph
            graph.replay()
            return cast("T", output)
        output = work(x)
        if transport:
            self._graph, self._made_for = captured(lambda: work(x)), (transport, transport.memory.epoch)
        return output

    def renew(self) -> None:
        """Capture the graph again at the next call: memory that the work points to has moved."""
        self._made_for = None


def captured(work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """Capture `work`, which has run before, as a CUDA graph. Return the graph and what `work` returned."""
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
    """Start timing. Return a function that waits for the current stream and returns the time in ms."""
    began = time.perf_counter()
    begun = recorded() if torch.cuda.is_initialized() else None

    def stop() -> float:
        if begun is None:
            return (time.perf_counter() - began) * 1e3
        ended = recorded()
        ended.synchronize()
        return begun.elapsed_time(ended)

    return stop
