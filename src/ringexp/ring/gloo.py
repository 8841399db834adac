"""The CPU transport."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import cast

import torch
import torch.distributed as dist

from ringexp.ring.links import Links
from ringexp.ring.pending import PendingShard
from ringexp.ring.ring_group import PeerLost
from ringexp.ring.route import Route
from ringexp.ring.timing import Origin
from ringexp.ring.transport import Connection, RingPass, Transport, resolved, shard_shape

_TAG = 0


class GlooTransport(Transport):
    """One thread per rank forwards shards while the main thread computes.

    CUDA tensors are staged through host memory: slow, but it works between any ranks.
    """

    name = "gloo"

    def __init__(self, links: Links | dist.ProcessGroup | None = None) -> None:
        """Take connections to all ranks, in rank order, as `links`; None: those of the default group."""
        self._links = cast("Links", resolved(None) if links is None else links)
        super().__init__(self._links.rank())
        self._forwarder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ring-forwarder")

    @classmethod
    def connect(cls, connection: Connection) -> GlooTransport:
        return cls(connection.links or resolved(connection.group))

    def circulate(self, k: torch.Tensor, v: torch.Tensor, ring_pass: RingPass) -> Generator[PendingShard]:
        route = Route.of(ring_pass.tokens, self.rank)
        arrivals: list[Future[torch.Tensor]] = [Future() for _ in range(route.hops)]
        credits = threading.Semaphore(ring_pass.prefetch_hops or route.hops or 1)
        if route.hops:
            shard = torch.stack((k, v)).cpu()
            self._forwarder.submit(self._forward, shard, ring_pass.tokens, route, arrivals, credits)
        try:
            yield PendingShard.local(self.rank, k, v)
            for hop, arrival in enumerate(arrivals, start=1):

                def receive(arrival: Future[torch.Tensor] = arrival) -> torch.Tensor:
                    shard = arrival.result()
                    credits.release()
                    return shard.to(k.device)

                yield PendingShard(route.source(hop), receive)
        finally:  # also where an exception ends the ring: the thread must not wait for what nobody receives
            credits.release(route.hops or 1)

    def _forward(
        self,
        shard: torch.Tensor,
        tokens: Sequence[int],
        route: Route,
        arrivals: list[Future[torch.Tensor]],
        credits: threading.Semaphore,
    ) -> None:
        """Hop after hop, send the current shard on and receive the next one."""
        hop = 0
        try:
            for hop in range(len(arrivals)):
                credits.acquire()
                began = time.perf_counter()
                incoming = shard.new_empty(shard_shape(shard[0], tokens[route.source(hop + 1)]))
                self._swap({route.after: shard}, {route.before: incoming})
                self.transfers.add([partial(_since, began, time.perf_counter())])
                arrivals[hop].set_result(incoming)
                shard = incoming
        except BaseException as error:  # whoever waits for a shard gets the reason
            for future in arrivals[hop:]:
                future.set_exception(error)

    def _swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
        try:
            pending = [
                post([_bytes(tensor)], peer, _TAG)
                for post, tensors in ((self._links.send, sends), (self._links.recv, receives))
                for peer, tensor in tensors.items()
            ]
            for work in pending:
                work.wait()
        except RuntimeError as error:
            raise PeerLost(str(error)) from error

    def exchange(
        self,
        sends: Mapping[int, torch.Tensor],
        receives: Mapping[int, torch.Tensor],
        sizes: Sequence[Sequence[int]],
    ) -> None:
        staged = {peer: torch.empty_like(tensor, device="cpu") for peer, tensor in receives.items()}
        self._swap({peer: tensor.contiguous().cpu() for peer, tensor in sends.items()}, staged)
        for peer, tensor in receives.items():
            tensor.copy_(staged[peer])

    def barrier(self) -> None:
        try:
            if isinstance(self._links, dist.ProcessGroup):
                dist.barrier(self._links)
            else:
                self._links.barrier().wait()
        except RuntimeError as error:
            raise PeerLost(str(error)) from error

    def close(self) -> None:
        self._forwarder.shutdown()


def _since(began: float, ended: float, origin: Origin) -> tuple[float, float]:
    return (began - origin.host_s) * 1e3, (ended - began) * 1e3


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's memory as bytes, so that every dtype can be sent."""
    return tensor.view(-1).view(torch.uint8)
