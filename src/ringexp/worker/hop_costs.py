"""What it costs to pass a shard on to the next rank."""

from __future__ import annotations

import torch

from ringexp.calibration.link import measure_link
from ringexp.choices import TRANSPORTS
from ringexp.kernels import Kernel
from ringexp.planning import EqualLinks, Link, make_plan
from ringexp.ring.context import RingContext
from ringexp.ring.transport import Transport
from ringexp.worker.communicator import Communicator
from ringexp.worker.progress import ProgressWriter
from ringexp.worker.throttle_state import ThrottleState


class HopCosts:
    """Measure the link between the ranks once. link: what it was measured to cost; None before that."""

    def __init__(
        self,
        communicator: Communicator,
        throttle: ThrottleState,
        transport: Transport,
        device: torch.device,
        progress: ProgressWriter,
    ) -> None:
        self._communicator, self._throttle, self._transport = communicator, throttle, transport
        self._device, self._progress = device, progress
        self.link: Link | None = None

    def of_shards(self, kernel: Kernel, token_bytes: float) -> EqualLinks | None:
        """Return the cost of one hop of a shard; None for a single rank. All ranks call this together.

        Args:
            kernel: a kernel that runs on this rank.
            token_bytes: bytes of keys and values per token.
        """
        if self._communicator.world_size == 1:
            return None
        if self.link is None:
            self._progress.stage(f"measuring hops over {self._transport.name}")
            self.link = measure_link(self._even_ring(kernel), self._device, self._slowest)
        direct = TRANSPORTS[self._transport.name].direct
        return EqualLinks(self.link.scaled(token_bytes), direct)

    def _even_ring(self, kernel: Kernel) -> RingContext:
        """Return a ring of all ranks with one token per rank."""
        communicator = self._communicator
        plan = make_plan(communicator.world_size, [1] * communicator.world_size)
        return RingContext(plan, communicator.rank, self._transport, kernel, self._throttle.clock())

    def _slowest(self, milliseconds: float) -> float:
        return max(self._communicator.gather(milliseconds))
