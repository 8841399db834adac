"""The CUDA transport between machines, and between GPUs that cannot reach each other: one rank a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist

from ringexp.planning import ring_members
from ringexp.ring.stream import HopStream, recorded
from ringexp.ring.transport import Arrival, Route, Transfer, lay_out, resolved, shard_shape


class NcclTransport:
    """NCCL send/receive to the ring's neighbours, posted before compute on a stream of its own."""

    name = "nccl"
    capturable = True
    announces = False
    epoch = 0

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._rank = dist.get_rank(group)
        self._device = device
        self._hops = HopStream(device, self._rank)

    def circulate(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        tokens: Sequence[int],
        prefetch_hops: int | None,
        by_heads: bool = False,
    ) -> Iterator[tuple[int, Arrival]]:
        sent = k.new_empty(shard_shape(k, k.shape[1]))
        if len(ring_members(tokens)) > 1:
            lay_out(k, v, sent)
        return self._hops.circulate(k, v, sent, tokens, prefetch_hops, self._receive)

    def reserve(self, num_bytes: int) -> None: ...

    def _receive(self, shards: Sequence[torch.Tensor], hop: int, route: Route) -> torch.cuda.Event:
        begun = recorded()
        self._swap({route.after: shards[hop - 1]}, {route.before: shards[hop]})
        return begun

    def _swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> None:
        world = resolved(self._group)
        operations = [
            dist.P2POp(operation, tensor, dist.get_global_rank(world, peer), self._group)
            for operation, tensors in ((dist.isend, sends), (dist.irecv, receives))
            for peer, tensor in tensors.items()
        ]
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()  # orders the current stream after the transfer; the host goes on

    def exchange(
        self,
        sends: Mapping[int, torch.Tensor],
        receives: Mapping[int, torch.Tensor],
        sizes: Sequence[Sequence[int]],
    ) -> None:
        self._swap({peer: tensor.contiguous() for peer, tensor in sends.items()}, receives)

    def take_transfers(self) -> list[Transfer]:
        return self._hops.take_transfers()

    def barrier(self) -> None:
        dist.all_reduce(torch.zeros(1, device=self._device), group=self._group)

    def close(self) -> None: ...
