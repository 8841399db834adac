"""Clocks split the time of one iteration into linear layers, attention and waiting for keys/values.

    clock.start()
    ... linear layers ...
    clock.computes_with([rank])         # keys/values that are there already
    ... attention ...
    with clock.waiting(source): ...     # does not count as busy
    ... attention ...
    clock.attended()                    # linear layers follow, up to the next wait
    ... linear layers ...
    clock.stop()
    timing = clock.read()

On CUDA times are read from events on the compute stream, so nothing is synchronised before `read`. An event
takes 2 to 3 us between kernels, so the clock records as few as possible. On the CPU the clock also slows an
emulated rank: after each stretch of compute the pacer waits until the stretch has lasted as long as on a
slower rank.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Protocol

import torch

from ringexp.ring.events import recorded
from ringexp.ring.timing import HopTiming, IterationTiming, Origin


class ComputePacer(Protocol):
    """Slows the compute of an emulated rank."""

    def settle(self, elapsed_s: float) -> None:
        """Wait until compute that took `elapsed_s` has lasted as long as on the emulated rank."""
        ...


class Clock(Protocol):
    """Times the parts of an iteration between `start` and `stop`."""

    @property
    def origin(self) -> Origin:
        """The start of the iteration, from which the begin of transfers is counted."""
        ...

    def start(self) -> None: ...

    def computes_with(self, sources: Sequence[int], waited: torch.Tensor | None = None) -> None:
        """Begin a stretch of attention with these shards together.

        waited: Where kernels leave how long they waited for the shards by themselves, int32 [1], in us.
        """
        ...

    def waiting(self, source: int) -> AbstractContextManager[None]:
        """Count the time inside as waiting for a source's shard. A stretch of attention with it follows."""
        ...

    def attended(self) -> None:
        """End the attention of a layer."""
        ...

    def stop(self) -> None: ...

    def read(self) -> IterationTiming: ...


class _Stretches:
    """The parts of an iteration in order: linear layers, and between them pairs of a wait and attention."""

    def __init__(self) -> None:
        self._sources: list[int | None] = []  # per stretch whose shard it waited for; None: compute
        self._linear: list[bool] = []
        self._inside: list[torch.Tensor | None] = []  # per stretch how long its kernels waited
        self.attending = False
        self._waited: torch.Tensor | None = None

    def computed(self) -> None:
        """End a stretch of compute."""
        self._sources.append(None)
        self._linear.append(not self.attending)
        self._inside.append(self._waited)
        self._waited = None

    def waited(self, source: int) -> None:
        self._sources.append(source)
        self._linear.append(False)
        self._inside.append(None)
        self.attending = True

    def begin_with(self, sources: Sequence[int], waited: torch.Tensor | None) -> int:
        """Begin attention with these shards. Return the number of stretches of no length that this adds."""
        for number, source in enumerate(sources):
            if number:
                self.computed()
            self.waited(source)
        self._waited = waited
        return 2 * len(sources) - 1

    def attended(self) -> None:
        self.computed()
        self.attending = False

    def timing(self, durations_ms: Sequence[float]) -> IterationTiming:
        """Return the timing of the iteration, given the duration of each stretch in order."""
        hops: list[HopTiming] = []
        linear: list[float] = []
        wait_ms, waited_for = 0.0, 0
        stretches = zip(self._sources, self._linear, self._inside, durations_ms, strict=True)
        for source, is_linear, inside, ms in stretches:
            if source is not None:
                wait_ms, waited_for = ms, source
            elif is_linear:
                linear.append(ms)
            else:
                inside_ms = 0.0 if inside is None else min(inside.item() / 1e3, ms)
                waits_ms, compute_ms = wait_ms + inside_ms, ms - inside_ms
                hops.append(HopTiming(waited_for, waits_ms, compute_ms, layer=len(linear) - 1))
        busy = sum(linear) + sum(hop.compute_ms for hop in hops)
        return IterationTiming(busy + sum(hop.wait_ms for hop in hops), busy, hops, linear)


class CpuClock:
    """Wall clock; `pacer` slows the compute of an emulated rank."""

    def __init__(self, pacer: ComputePacer) -> None:
        self._pacer = pacer

    @property
    def origin(self) -> Origin:
        return Origin(self._began)

    def start(self) -> None:
        self._stretches, self._durations_ms = _Stretches(), list[float]()
        self._began = self._mark = time.perf_counter()

    def _settle(self) -> None:
        """End a stretch of compute."""
        self._pacer.settle(time.perf_counter() - self._mark)
        self._end()

    def _end(self) -> None:
        now = time.perf_counter()
        self._durations_ms.append((now - self._mark) * 1e3)
        self._mark = now

    def computes_with(self, sources: Sequence[int], waited: torch.Tensor | None = None) -> None:
        self._settle()
        self._stretches.computed()
        self._durations_ms += [0.0] * self._stretches.begin_with(sources, waited)

    @contextmanager
    def waiting(self, source: int) -> Iterator[None]:
        self._settle()
        self._stretches.computed()
        yield
        self._end()
        self._stretches.waited(source)

    def attended(self) -> None:
        self._settle()
        self._stretches.attended()

    def stop(self) -> None:
        self._settle()
        self._stretches.computed()

    def read(self) -> IterationTiming:
        return self._stretches.timing(self._durations_ms)


class CudaClock:
    """CUDA events on the current stream; `read` synchronises with the last one.

    A clock that was started and stopped while a graph was captured reads the graph's latest replay, which has
    to be over. only_attention: the iteration has no linear layers, so no event is recorded outside attention.
    """

    def __init__(self, only_attention: bool = False) -> None:
        self._only_attention = only_attention

    @property
    def origin(self) -> Origin:
        return Origin(self._began, self._events[0])

    def start(self) -> None:
        self._stretches = _Stretches()
        self._began = time.perf_counter()
        self._events = [recorded()]

    def _computed(self) -> None:
        """End a stretch of compute."""
        nothing = self._only_attention and not self._stretches.attending
        self._events.append(self._events[-1] if nothing else recorded())
        self._stretches.computed()

    def computes_with(self, sources: Sequence[int], waited: torch.Tensor | None = None) -> None:
        self._computed()
        self._events += [self._events[-1]] * self._stretches.begin_with(sources, waited)

    @contextmanager
    def waiting(self, source: int) -> Iterator[None]:
        self._events.append(recorded())
        self._stretches.computed()
        yield
        self._events.append(recorded())
        self._stretches.waited(source)

    def attended(self) -> None:
        self._events.append(recorded())
        self._stretches.attended()

    def stop(self) -> None:
        self._computed()

    def read(self) -> IterationTiming:
        self._events[-1].synchronize()
        return self._stretches.timing([a.elapsed_time(b) for a, b in pairwise(self._events)])


class NoClock:
    """A clock for runs that are not timed."""

    origin = Origin(0.0)

    def start(self) -> None: ...

    def computes_with(self, sources: Sequence[int], waited: torch.Tensor | None = None) -> None: ...

    @contextmanager
    def waiting(self, source: int) -> Iterator[None]:
        yield

    def attended(self) -> None: ...

    def stop(self) -> None: ...

    def read(self) -> IterationTiming:
        return IterationTiming(0.0, 0.0)


def make_clock(device: torch.device, pacer: ComputePacer, only_attention: bool = False) -> Clock:
    """Return the clock for a device. pacer: as in `CpuClock`; only_attention: as in `CudaClock`."""
    return CudaClock(only_attention) if device.type == "cuda" else CpuClock(pacer)
