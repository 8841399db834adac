"""Device memory that launches of the Hopper kernel count and wait with, kept for the life of the process."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

WORD = 4
"""The distance of two flags in int32: 16 bytes."""
_LAUNCHES = 1 << 16  # that have a counter of their own


class LaunchCounters:
    """Zeros on one device for launches to count tiles with; a kernel leaves its own zero again.

    Launches on one stream follow each other and share one. Each launch that a graph captured has its own,
    since the graph may be replayed beside anything else; where those are used up the graph fills one itself.
    """

    def __init__(self, device: torch.device) -> None:
        # Rows as far apart as an allocation may be, for one kernel to serve all.
        self._words = torch.zeros(_LAUNCHES, WORD, dtype=torch.int32, device=device)
        self._used = 0
        self._of_streams: dict[int, Tensor] = {}

    def next(self) -> Tensor:
        """Return the counter of a launch on the current stream."""
        if torch.cuda.is_current_stream_capturing():
            return self._unused()
        stream = torch.cuda.current_stream(self._words.device).cuda_stream
        if stream not in self._of_streams:
            self._of_streams[stream] = self._unused()
        return self._of_streams[stream]

    def _unused(self) -> Tensor:
        if self._used == _LAUNCHES:
            return torch.zeros_like(self._words[0])
        self._used += 1
        return self._words[self._used - 1]


@functools.cache
def counters_of(device: torch.device) -> LaunchCounters:
    """Return the counters of a device."""
    return LaunchCounters(device)


@functools.cache
def set_flags(device: torch.device, pieces: int) -> Tensor:
    """Return flags that are set: for spans that are there, in a launch that waits for other ones."""
    return torch.ones(pieces, WORD, dtype=torch.int32, device=device)[:, 0]
