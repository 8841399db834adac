"""Measure the cost per hop, by sending shards round the ring with nothing to compute."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

from ringexp.planning import Link
from ringexp.ring.context import RingContext
from ringexp.ring.iteration import Iteration
from ringexp.ring.transport import RingPass

REPEATS = 5
SHARD_BYTES = {"cpu": (1 << 14, 1 << 22), "cuda": (1 << 16, 1 << 26)}
"""Bytes of a small and a large shard per device type. The line through their times has latency and slope."""


def measure_link(ring: RingContext, device: torch.device, slowest: Callable[[float], float]) -> Link:
    """Measure the link per byte between the ranks. All ranks call this together.

    Args:
        ring: a ring of all ranks with one token each.
        device: this rank's device.
        slowest: returns the largest of all ranks' values, so that all ranks get the same answer.
    """
    small, large = SHARD_BYTES[device.type]
    times = [slowest(_hop_ms(ring, device, size)) for size in (small, large)]
    byte_ms = max(times[1] - times[0], 0.0) / (large - small)
    return Link(max(times[0] - byte_ms * small, 0.0), byte_ms)


def _hop_ms(ring: RingContext, device: torch.device, num_bytes: int) -> float:
    """Return the median transfer time of a shard's hops in an even ring, ms. The first round does not count.

    On CUDA the ring is a graph if the transport can be captured. Without a graph the host's launches would
    take longer than a short hop; in a real ring the host is ahead of the device.
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
