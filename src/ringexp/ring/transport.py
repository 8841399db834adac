"""Transports: carry key/value shards round the ring, each forwarded as soon as it is there.

`circulate` yields (source, arrival) in order of arrival, the rank's own shard first; `arrival()` returns the
shard once computing may use it. Forwarding never waits for compute unless `prefetch_hops` says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
import torch.distributed as dist

Arrival = Callable[[], torch.Tensor]


class Transport(Protocol):
    name: str

    def circulate(
        self, kv: torch.Tensor, tokens: Sequence[int], prefetch_hops: int | None
    ) -> Iterator[tuple[int, Arrival]]:
        """Pass `kv` [2, B, L, Hkv, D] round; `tokens[r]` is rank r's L, at which its shard is sent."""
        ...

    def exchange(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
        """Send and receive contiguous tensors by peer; returns when `receives` may be used."""
        ...

    def take_transfers(self) -> list[float]:
        """Time in flight of each hop since the last call, in milliseconds; every hop must have arrived."""
        ...

    def barrier(self) -> None:
        """Line the ranks up; on CUDA in stream order."""
        ...


def _shape(kv: torch.Tensor, tokens: int) -> tuple[int, ...]:
    return (*kv.shape[:2], tokens, *kv.shape[3:])


class LoopbackTransport:
    """A ring of one process: every shard that would arrive is the rank's own. For measuring compute alone."""

    name = "loopback"

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank

    def circulate(
        self, kv: torch.Tensor, tokens: Sequence[int], prefetch_hops: int | None
    ) -> Iterator[tuple[int, Arrival]]:
        for hop in range(len(tokens)):
            yield (self._rank - hop) % len(tokens), lambda: kv

    def exchange(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
        raise AssertionError("a ring of one has no peers")

    def take_transfers(self) -> list[float]:
        return []

    def barrier(self) -> None: ...


class GlooTransport:
    """CPU transport: a thread a rank forwards shards while the main thread computes.

    CUDA tensors are staged through host memory: slow, but it lets several ranks share one GPU.
    """

    name = "gloo"

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._forwarder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ring-forwarder")
        self._transfers: list[float] = []

    def circulate(
        self, kv: torch.Tensor, tokens: Sequence[int], prefetch_hops: int | None
    ) -> Iterator[tuple[int, Arrival]]:
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
                incoming = shard.new_empty(_shape(shard, tokens[(self._rank - hop - 1) % self._world]))
                self._swap({after: shard}, {before: incoming})
                self._transfers.append((time.perf_counter() - began) * 1e3)
                arrivals[hop].set_result(incoming)
                shard = incoming
        except BaseException as error:  # whoever waits for a shard gets the reason
            for future in arrivals[hop:]:
                future.set_exception(error)

    def _swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
        pending = [
            dist.isend(_bytes(tensor), dist.get_global_rank(_world(self._group), peer), self._group)
            for peer, tensor in sends.items()
        ] + [
            dist.irecv(_bytes(tensor), dist.get_global_rank(_world(self._group), peer), self._group)
            for peer, tensor in receives.items()
        ]
        for work in pending:
            assert work is not None
            work.wait()

    def exchange(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
        staged = {peer: torch.empty_like(tensor, device="cpu") for peer, tensor in receives.items()}
        self._swap({peer: tensor.contiguous().cpu() for peer, tensor in sends.items()}, staged)
        for peer, tensor in receives.items():
            tensor.copy_(staged[peer])

    def take_transfers(self) -> list[float]:
        taken, self._transfers = self._transfers, []
        return taken

    def barrier(self) -> None:
        dist.barrier(self._group)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's memory as bytes, so that every dtype travels."""
    return tensor.view(-1).view(torch.uint8)


def _world(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    resolved = group if group is not None else dist.group.WORLD
    assert resolved is not None
    return resolved


class NcclTransport:
    """CUDA transport: NCCL send/receive on a stream of its own, posted before compute."""

    name = "nccl"

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def circulate(
        self, kv: torch.Tensor, tokens: Sequence[int], prefetch_hops: int | None
    ) -> Iterator[tuple[int, Arrival]]:
        hops = self._world - 1
        window = prefetch_hops or hops
        compute = torch.cuda.current_stream(self._device)
        shards = [kv]
        arrived: list[torch.cuda.Event] = []

        def post() -> None:  # the next hop, in order on the transfer stream
            hop = len(shards)
            shards.append(kv.new_empty(_shape(kv, tokens[(self._rank - hop) % self._world])))
            self._stream.wait_stream(compute)  # the buffer is free, and lock-step hops wait for compute
            with torch.cuda.stream(self._stream):
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                self._swap(
                    {(self._rank + 1) % self._world: shards[hop - 1]},
                    {(self._rank - 1) % self._world: shards[hop]},
                )
                end.record()
            shards[hop - 1].record_stream(self._stream)
            shards[hop].record_stream(self._stream)
            arrived.append(end)
            self._events.append((begin, end))

        for _ in range(min(window, hops)):
            post()
        yield self._rank, lambda: kv
        for hop in range(1, hops + 1):

            def arrival(hop: int = hop) -> torch.Tensor:
                compute.wait_event(arrived[hop - 1])
                if len(shards) <= hops:
                    post()
                return shards[hop]

            yield (self._rank - hop) % self._world, arrival

    def _swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
        world = _world(self._group)
        operations = [
            dist.P2POp(operation, tensor, dist.get_global_rank(world, peer), self._group)
            for operation, tensors in ((dist.isend, sends), (dist.irecv, receives))
            for peer, tensor in tensors.items()
        ]
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()  # orders the current stream after the transfer; the host goes on

    def exchange(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
        self._swap({peer: tensor.contiguous() for peer, tensor in sends.items()}, receives)

    def take_transfers(self) -> list[float]:
        taken, self._events = self._events, []
        for _, end in taken:
            end.synchronize()
        return [begin.elapsed_time(end) for begin, end in taken]

    def barrier(self) -> None:
        dist.all_reduce(torch.zeros(1, device=self._device), group=self._group)


def make_transport(name: str, device: torch.device, group: dist.ProcessGroup | None = None) -> Transport:
    """The transport of a resolved name on an initialised process group."""
    if name == "nccl":
        return NcclTransport(device, group)
    return GlooTransport(group)
