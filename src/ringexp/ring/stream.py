"""Hops on a stream of their own, posted ahead of compute, and events that time them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import torch

from ringexp.ring.timing import Origin
from ringexp.ring.transport import Arrival, Route, Transfer, shard_shape


class ReceiveHop(Protocol):
    def __call__(self, shards: Sequence[torch.Tensor], hop: int, route: Route) -> torch.cuda.Event:
        """Fill `shards[hop]`, on the current stream; returns an event of its own, when the transfer began."""
        ...


class HopStream:
    """The transfer stream of one rank, and the times of the hops on it."""

    def __init__(self, device: torch.device, rank: int) -> None:
        self._device, self._rank = device, rank
        self.stream = torch.cuda.Stream(device, priority=-1)  # kernels that carry go before blocks
        self._transfers: list[Transfer] = []

    def circulate(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        sent: torch.Tensor,
        tokens: Sequence[int],
        prefetch_hops: int | None,
        receive: ReceiveHop,
    ) -> Iterator[tuple[int, Arrival]]:
        """As `Transport.circulate`; `sent` is the rank's own shard [2, B, L, Hkv, D] as it goes to others."""
        route = Route.of(tokens, self._rank)
        compute = torch.cuda.current_stream(self._device)
        shards = [sent]
        arrived: list[torch.cuda.Event] = []

        def post() -> None:  # the next hop, in order on the transfer stream
            hop = len(shards)
            shards.append(k.new_empty(shard_shape(k, tokens[route.source(hop)])))
            self.stream.wait_stream(compute)  # the buffer is free, and lock-step hops wait for compute
            with torch.cuda.stream(self.stream):
                begun = receive(shards, hop, route)
                ended = recorded()
                arrived.append(torch.cuda.Event())
                arrived[-1].record()
            shards[hop - 1].record_stream(self.stream)
            shards[hop].record_stream(self.stream)
            self._transfers.append(partial(since, begun, ended))

        for _ in range(min(prefetch_hops or route.hops, route.hops)):
            post()
        yield self._rank, lambda: (k, v)
        for hop in range(1, route.hops + 1):

            def arrival(hop: int = hop) -> torch.Tensor:
                compute.wait_event(arrived[hop - 1])
                if len(shards) <= route.hops:
                    post()
                return shards[hop]

            yield route.source(hop), arrival

    def take_transfers(self) -> list[Transfer]:
        """As `Transport.take_transfers`."""
        taken, self._transfers = self._transfers, []
        return taken


def since(begun: torch.cuda.Event, ended: torch.cuda.Event, origin: Origin) -> tuple[float, float]:
    """A `Transfer`, but for the origin."""
    return origin.event.elapsed_time(begun), begun.elapsed_time(ended)


def nothing(origin: Origin) -> tuple[float, float]:
    """As `since`, of a hop for which nothing was carried."""
    return 0.0, 0.0


def recorded() -> torch.cuda.Event:
    """A timed event, recorded on the current stream; in a graph at every replay.

    Whoever asks for one while a graph is captured must keep it as long as the graph, which keeps a pointer.
    """
    event = torch.cuda.Event(enable_timing=True, external=True)
    event.record()
    return event
