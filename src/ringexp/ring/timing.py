"""What a clock reads: plain numbers, free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Origin:
    """When an iteration began: by `time.perf_counter`, and on CUDA also as an event."""

    host_s: float
    event: Any = None


@dataclass(frozen=True)
class HopTiming:
    """One arrival of keys/values, and the blocks computed with them.

    wait_ms: computing stood still for it. compute_ms: attention, from its arrival to the next wait or the
    end of the layer's attention. transfer_ms: how long the hop was in flight on this rank, hidden or
    not; over IPC, where shards are sent to all, that of what the rank sent; 0 for its own shard.
    transfer_start_ms: when that began, from the start of the iteration. layer: whose attention it was for,
    counted from 0.
    """

    source: int
    wait_ms: float
    compute_ms: float
    transfer_ms: float = 0.0
    transfer_start_ms: float = 0.0
    layer: int = 0


@dataclass(frozen=True)
class IterationTiming:
    """One rank's view of one iteration; all in milliseconds.

    linear_ms: computing outside attention, before the first layer's, between two, after the last layer's.
    busy = linear + attention; busy + waits = latency.
    """

    latency_ms: float
    busy_ms: float
    hops: list[HopTiming] = field(default_factory=list)
    linear_ms: list[float] = field(default_factory=list)

    def with_transfers(self, transfers: Sequence[tuple[float | None, float]], rank: int) -> IterationTiming:
        """The same with the hops' transfers filled in, (start, duration) in order; own shards have none.

        A start of None is that of the layer's attention.
        """
        remaining = iter(transfers)
        hops: list[HopTiming] = []
        passed_ms, attention_ms, layer = 0.0, 0.0, -1
        for hop in self.hops:
            if hop.layer != layer:
                layer = hop.layer
                attention_ms = passed_ms + sum(self.linear_ms[: layer + 1])
            passed_ms += hop.wait_ms + hop.compute_ms
            if hop.source != rank:
                start_ms, duration_ms = next(remaining, (0.0, 0.0))
                start_ms = attention_ms if start_ms is None else start_ms
                hop = replace(hop, transfer_start_ms=start_ms, transfer_ms=duration_ms)
            hops.append(hop)
        return replace(self, hops=hops)
