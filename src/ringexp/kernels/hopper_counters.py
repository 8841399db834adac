"""Counters and flags of the Hopper kernel's launches in device memory, kept for the life of the process."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

WORD = 4
"""The distance between two flags, in int32: 16 bytes."""
_LAUNCHES = 1 << 16  # launches with a counter of their own


class LaunchCounters:
    """The counters of one device, with which launches count tiles. Each kernel leaves its counter 0.

    Launches on one stream run one after the other and share a counter. Each launch in a CUDA graph has a
    counter of its own, since the graph may be replayed at the same time as anything else. When all counters
    are in use, the graph sets a new one to 0 by itself.
    """

    def __init__(self, device: torch.device) -> None:
        # Rows are 16-byte aligned, as an allocation is, so that one compiled kernel serves all of them.
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
    """Return flags that are set, for spans that are there already in a launch that waits for other spans."""
    return torch.ones(pieces, WORD, dtype=torch.int32, device=device)[:, 0]
