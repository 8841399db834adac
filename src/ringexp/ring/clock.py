"""Clocks: split one iteration of a rank into linear layers, attention and waiting for keys/values.

    clock.start()
    ... linear layers ...
    clock.computes_with([rank])                 # keys/values that nothing is to be waited for
    ... attention ...
    with clock.waiting(source): ...     # not counted as busy
    ... attention ...
    clock.attended()                    # what follows is linear layers again, up to the next wait
    ... linear layers ...
    clock.stop()
    timing = clock.read()

On CUDA both are read from events on the compute stream, so nothing is synchronised before `read`; each takes
2 to 3 us between kernels, so there are no more than have to be. On CPU the clock also is where an emulated
slow rank takes its extra time: after each stretch of compute the pacer waits until the stretch has lasted as
long as it would on a slower rank.
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

    def computes_with(self, sources: Sequence[int], waited: torch.Tensor | None = None) -> None:
        """What follows computes with these shards together.

        waited: how long it will have waited for them by itself, int32 [1], us.
        """
        ...

    def waiting(self, source: int) -> AbstractContextManager[None]: ...

    def attended(self) -> None:
        """The attention of a layer is over."""
        ...

    def stop(self) -> None: ...

    def read(self) -> IterationTiming: ...


class _Stretches:
    """What an iteration consists of: after each wait attention, and linear layers around the attentions."""

    def __init__(self) -> None:
        self._sources: list[int | None] = []  # whose shard was waited for; None: computing
        self._linear: list[bool] = []
        self._inside: list[torch.Tensor | None] = []  # waiting that a stretch of compute includes
        self.attending = False
        self._awaits: torch.Tensor | None = None

    def computed(self) -> None:
        """A stretch of compute is over."""
        self._sources.append(None)
        self._linear.append(not self.attending)
        self._inside.append(self._awaits)
        self._awaits = None

    def waited(self, source: int) -> None:
        self._sources.append(source)
        self._linear.append(False)
        self._inside.append(None)
        self.attending = True

    def taken(self, sources: Sequence[int], waited: torch.Tensor | None) -> int:
        """Work with these shards begins; returns how many stretches of no length that is."""
        for number, source in enumerate(sources):
            if number:
                self.computed()
            self.waited(source)
        self._awaits = waited
        return 2 * len(sources) - 1

    def attended(self) -> None:
        self.computed()
        self.attending = False

    def timing(self, durations_ms: Sequence[float]) -> IterationTiming:
        """durations_ms: of each stretch, in order."""
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

    def __init__(self, pacer: Pacer) -> None:
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
        self._durations_ms += [0.0] * self._stretches.taken(sources, waited)

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

    Started and stopped while a graph is captured, it reads the graph's latest replay, which has to be over.
    only_attention: nothing is computed outside of it. Then no event is recorded there: each takes 2 to 3 us.
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
        """A stretch of compute is over."""
        nothing = self._only_attention and not self._stretches.attending
        self._events.append(self._events[-1] if nothing else recorded())
        self._stretches.computed()

    def computes_with(self, sources: Sequence[int], waited: torch.Tensor | None = None) -> None:
        self._computed()
        self._events += [self._events[-1]] * self._stretches.taken(sources, waited)

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
    """For runs nobody times."""

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


def make_clock(device: torch.device, pacer: Pacer, only_attention: bool = False) -> Clock:
    return CudaClock(only_attention) if device.type == "cuda" else CpuClock(pacer)
