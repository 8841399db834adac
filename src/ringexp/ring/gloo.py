"""The CPU transport."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
import torch.distributed as dist

from ringexp.ring.transport import Arrival, Transfer, resolved, shard_shape


class GlooTransport:
    """A thread a rank forwards shards while the main thread computes.

    CUDA tensors are staged through host memory: slow, but it works between any ranks.
    """

    name = "gloo"
    capturable = False

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._forwarder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ring-forwarder")
        self._transfers: list[Transfer] = []

    def circulate(
        self, k: torch.Tensor, v: torch.Tensor, tokens: Sequence[int], prefetch_hops: int | None
    ) -> Iterator[tuple[int, Arrival]]:
        kv = torch.stack((k, v))
        hops = self._world - 1
        arrivals: list[Future[torch.Tensor]] = [Future() for _ in range(hops)]
        credits = threading.Semaphore(prefetch_hops or hops or 1)
        if hops:
            self._forwarder.submit(self._forward, kv.cpu(), tokens, arrivals, credits)
        yield self._rank, lambda: kv
        for hop, future in enumerate(arrivals, start=1):

            def arrival(future: Future[torch.Tensor] = future) -> torch.Tensor:
                shard = future.result()
                credits.release()
                return shard.to(kv.device)

            yield (self._rank - hop) % self._world, arrival

    def _forward(
        self,
        shard: torch.Tensor,
        tokens: Sequence[int],
        arrivals: list[Future[torch.Tensor]],
        credits: threading.Semaphore,
    ) -> None:
        """Hop after hop: send the shard on, receive the next one."""
        after, before = (self._rank + 1) % self._world, (self._rank - 1) % self._world
        hop = 0
        try:
            for hop in range(len(arrivals)):
                credits.acquire()
                began = time.perf_counter()
                incoming = shard.new_empty(shard_shape(shard, tokens[(self._rank - hop - 1) % self._world]))
                self._swap({after: shard}, {before: incoming})
                self._transfers.append(partial(_since, began, time.perf_counter()))
                arrivals[hop].set_result(incoming)
                shard = incoming
        except BaseException as error:  # whoever waits for a shard gets the reason
            for future in arrivals[hop:]:
                future.set_exception(error)

    def _swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
        world = resolved(self._group)
        pending = [
            post(_bytes(tensor), dist.get_global_rank(world, peer), self._group)
            for post, tensors in ((dist.isend, sends), (dist.irecv, receives))
            for peer, tensor in tensors.items()
        ]
        for work in pending:
            assert work is not None
            work.wait()

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

    def take_transfers(self) -> list[Transfer]:
        taken, self._transfers = self._transfers, []
        return taken

    def barrier(self) -> None:
        dist.barrier(self._group)

    def close(self) -> None:
        self._forwarder.shutdown()


def _since(began: float, ended: float, origin: float) -> tuple[float, float]:
    return (began - origin) * 1e3, (ended - began) * 1e3


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's memory as bytes, so that every dtype travels."""
    return tensor.view(-1).view(torch.uint8)
