"""Whether iterations are replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ringexp.ring.context import RingContext
from ringexp.ring.iteration import Iteration
from ringexp.ring.transport import Transport


@dataclass(frozen=True)
class CudaGraphs:
    """The use of CUDA graphs in one job. enabled: iterations become graphs wherever the transport allows."""

    enabled: bool

    def captures(self, transport: Transport) -> bool:
        """Return whether iterations over a transport are CUDA graphs."""
        return self.enabled and transport.capturable

    def iteration(self, work: Callable[[], torch.Tensor], ring: RingContext) -> Iteration:
        """Return `work` as it is run and measured, already captured if it is to be a CUDA graph."""
        iteration = Iteration(work, ring)
        if self.captures(ring.transport):
            iteration.capture()
        return iteration
