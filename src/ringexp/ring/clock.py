"""Clocks: split one iteration of a rank into computing and waiting for keys/values.

    clock.start()
    ... compute ...
    with clock.waiting(source): ...     # not counted as busy
    ... compute ...
    clock.stop()
    timing = clock.read()

On CUDA both are read from events on the compute stream, so nothing is synchronised before `read`. On CPU the
clock also is where an emulated slow rank takes its extra time: after each stretch of compute the pacer waits
until the stretch has lasted as long as it would on a slower rank.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from ringexp.ring.stream import recorded
from ringexp.ring.timing import HopTiming, IterationTiming, Origin


class Pacer(Protocol):
    def settle(self, elapsed_s: float) -> None:
        """Wait until `elapsed_s` of compute has taken as long as on the emulated rank."""
        ...


class Clock(Protocol):
    @property
    def origin(self) -> Origin:
        """When the clock was started, as transfers are told of it."""
        ...

    def start(self) -> None: ...

    def waiting(self, source: int) -> AbstractContextManager[None]: ...

    def stop(self) -> None: ...

    def read(self) -> IterationTiming: ...


def _timing(first_ms: float, waits: list[tuple[int, float]], computes: list[float]) -> IterationTiming:
    hops = [HopTiming(source, wait, compute) for (source, wait), compute in zip(waits, computes, strict=True)]
    busy = first_ms + sum(computes)
    return IterationTiming(busy + sum(wait for _, wait in waits), busy, hops)


class CpuClock:
    """Wall clock; `pacer` slows the compute of an emulated rank."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer

    @property
    def origin(self) -> Origin:
        return Origin(self._began)

    def start(self) -> None:
        self._waits: list[tuple[int, float]] = []
        self._stretches: list[float] = []  # of compute, in ms: before the first wait, after each wait
        self._began = self._mark = time.perf_counter()

    def _end_stretch(self) -> float:
        self._pacer.settle(time.perf_counter() - self._mark)
        now = time.perf_counter()
        self._stretches.append((now - self._mark) * 1e3)
        return now

    @contextmanager
    def waiting(self, source: int) -> Iterator[None]:
        began = self._end_stretch()
        yield
        self._mark = time.perf_counter()
        self._waits.append((source, (self._mark - began) * 1e3))

    def stop(self) -> None:
        self._end_stretch()

    def read(self) -> IterationTiming:
        return _timing(self._stretches[0], self._waits, self._stretches[1:])


class CudaClock:
    """CUDA events on the current stream; `read` synchronises with the last one.

    Started and stopped while a graph is captured, it reads the graph's latest replay, which has to be over.
    """

    @property
    def origin(self) -> Origin:
        return Origin(self._began, self._events[0])

    def start(self) -> None:
        self._sources: list[int] = []
        self._began = time.perf_counter()
        self._events = [recorded()]

    @contextmanager
    def waiting(self, source: int) -> Iterator[None]:
        self._events.append(recorded())
        yield
        self._events.append(recorded())
        self._sources.append(source)

    def stop(self) -> None:
        self._events.append(recorded())

    def read(self) -> IterationTiming:
        self._events[-1].synchronize()
        gaps = [a.elapsed_time(b) for a, b in zip(self._events, self._events[1:], strict=False)]
        return _timing(gaps[0], list(zip(self._sources, gaps[1::2], strict=True)), gaps[2::2])


class NoClock:
    """For runs nobody times."""

    origin = Origin(0.0)

    def start(self) -> None: ...

    @contextmanager
    def waiting(self, source: int) -> Iterator[None]:
        yield

    def stop(self) -> None: ...

    def read(self) -> IterationTiming:
        return IterationTiming(0.0, 0.0)


def make_clock(device: torch.device, pacer: Pacer) -> Clock:
    return CudaClock() if device.type == "cuda" else CpuClock(pacer)
