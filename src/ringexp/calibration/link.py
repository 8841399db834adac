"""What one hop of the ring costs, measured by sending shards round with nothing to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from ringexp.ring.context import RingContext
from ringexp.ring.iteration import Iteration
from ringexp.ring.transport import RingPass

REPEATS = 5
SHARD_BYTES = {"cpu": (1 << 14, 1 << 22), "cuda": (1 << 16, 1 << 26)}
"""A small and a large shard for each device type: the line through their times is latency and bandwidth."""


@dataclass(frozen=True)
class LinkCost:
    """A hop of n bytes takes latency_ms + byte_ms * n, while all ranks send and receive."""

    latency_ms: float
    byte_ms: float

    @property
    def gbps(self) -> float | None:
        """GB/s each way; None if a large shard was as quick as a small one."""
        return 1e-6 / self.byte_ms if self.byte_ms else None


def measure_link(ring: RingContext, device: torch.device, slowest: Callable[[float], float]) -> LinkCost:
    """All ranks call it in step. ring: of all ranks, one token each.

    slowest: the largest of all ranks' values, so that all get one answer.
    """
    small, large = SHARD_BYTES[device.type]
    times = [slowest(_hop_ms(ring, device, size)) for size in (small, large)]
    byte_ms = max(times[1] - times[0], 0.0) / (large - small)
    return LinkCost(max(times[0] - byte_ms * small, 0.0), byte_ms)


def _hop_ms(ring: RingContext, device: torch.device, num_bytes: int) -> float:
    """Median time in flight of the hops of an even ring of such shards; the first round does not count.

    On CUDA as a graph where that can be: launched one by one, a short hop would be as long as that takes the
    host, which in a ring is ahead of the device.
    """
    half = torch.zeros(1, 1, 1, num_bytes // 2, dtype=torch.uint8, device=device)
    ring.transport.memory.reserve(num_bytes)

    def carry() -> torch.Tensor:
        for shard in ring.transport.circulate(half, half, RingPass(ring.plan.kv_tokens)):
            with ring.clock.waiting(shard.source):
                shard.receive()
        return half

    iteration = Iteration(carry, ring)
    if device.type == "cuda" and ring.transport.capturable:
        iteration.capture()
    hops: list[float] = []
    for repeat in range(REPEATS + 1):
        iteration.line_up()
        timing = iteration.run()[1]
        hops += [hop.transfer_ms for hop in timing.hops if repeat and hop.source != ring.rank]
    return median(hops)
