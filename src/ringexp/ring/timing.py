"""The timings that a clock reads: plain numbers, free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Origin:
    """The begin of an iteration: by `time.perf_counter`, and on CUDA also as an event."""

    host_s: float
    event: torch.cuda.Event | None = None


@dataclass(frozen=True)
class HopTiming:
    """One arrival of keys/values, and the blocks computed with them.

    Attributes:
        source: The rank whose keys/values arrived.
        wait_ms: How long compute stood still for them.
        compute_ms: The attention from their arrival to the next wait, or to the end of the layer's attention.
        transfer_ms: How long the hop was in flight on this rank, hidden or not; 0 for the rank's own shard.
            Over IPC, where a rank sends its shard to all others, this is what the rank sent.
        transfer_start_ms: The begin of that transfer, from the start of the iteration.
        layer: The layer whose attention the hop was for, counted from 0.
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

    Attributes:
        latency_ms: The whole iteration: busy_ms and all waits.
        busy_ms: Linear layers and attention.
        linear_ms: Compute outside attention: before the first layer's, between two, and after the last one's.
    """

    latency_ms: float
    busy_ms: float
    hops: list[HopTiming] = field(default_factory=list)
    linear_ms: list[float] = field(default_factory=list)

    def with_transfers(self, transfers: Sequence[tuple[float | None, float]], rank: int) -> IterationTiming:
        """Return the timing with the hops' transfers filled in; the rank's own shards have none.

        transfers: (start, duration) in order; a start of None means that of the layer's attention.
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
