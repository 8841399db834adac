"""What one hop of the ring costs, measured by sending shards round with nothing to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from ringexp.ring.clock import Clock
from ringexp.ring.transport import Transport

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


def measure_link(
    transport: Transport,
    device: torch.device,
    world_size: int,
    make_clock: Callable[[], Clock],
    slowest: Callable[[float], float],
) -> LinkCost:
    """All ranks call it in step. slowest: the largest of all ranks' values, so that all get one answer."""
    small, large = SHARD_BYTES[device.type]
    times = [slowest(_hop_ms(transport, device, world_size, make_clock, size)) for size in (small, large)]
    byte_ms = max(times[1] - times[0], 0.0) / (large - small)
    return LinkCost(max(times[0] - byte_ms * small, 0.0), byte_ms)


def _hop_ms(
    transport: Transport,
    device: torch.device,
    world_size: int,
    make_clock: Callable[[], Clock],
    num_bytes: int,
) -> float:
    """Median time in flight of the hops of an even ring of such shards; the first round does not count."""
    half = torch.zeros(1, 1, 1, num_bytes // 2, dtype=torch.uint8, device=device)
    transport.reserve(num_bytes)
    hops: list[float] = []
    for repeat in range(REPEATS + 1):
        transport.barrier()
        clock = make_clock()
        clock.start()
        for source, arrival in transport.circulate(half, half, [1] * world_size, None):
            with clock.waiting(source):
                arrival()
        clock.stop()
        clock.read()
        transfers = [transfer(clock.origin)[1] for transfer in transport.take_transfers()]
        hops += transfers if repeat else []
    return median(hops)
