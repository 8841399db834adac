"""The CUDA transport between machines, and between GPUs that cannot reach each other: one rank per GPU."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist

from ringexp.planning import ring_members
from ringexp.ring.events import recorded, since
from ringexp.ring.pending import PendingShard
from ringexp.ring.route import Route
from ringexp.ring.transport import Connection, RingPass, Transport, lay_out, resolved, shard_shape


class NcclTransport(Transport):
    """NCCL send/receive to the ring's neighbours, posted before compute on a stream of its own."""

    name = "nccl"
    capturable = True

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(dist.get_rank(group))
        self._group = group
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1)  # kernels that carry go before blocks

    @classmethod
    def connect(cls, connection: Connection) -> NcclTransport:
        return cls(connection.device, connection.group)

    def circulate(self, k: torch.Tensor, v: torch.Tensor, ring_pass: RingPass) -> Generator[PendingShard]:
        sent = k.new_empty(shard_shape(k, k.shape[1]))
        if len(ring_members(ring_pass.tokens)) > 1:
            lay_out(k, v, sent)
        return self._circulate(k, v, sent, ring_pass)

    def _circulate(
        self, k: torch.Tensor, v: torch.Tensor, sent: torch.Tensor, ring_pass: RingPass
    ) -> Generator[PendingShard]:
        """Pass shards round the ring. sent: keys and values as one shard [2, B, L, Hkv, D]."""
        route = Route.of(ring_pass.tokens, self.rank)
        compute = torch.cuda.current_stream(self._device)
        shards = [sent]
        arrived: list[torch.cuda.Event] = []

        def post() -> None:  # the next hop, in order on the transfer stream
            hop = len(shards)
            shards.append(k.new_empty(shard_shape(k, ring_pass.tokens[route.source(hop)])))
            self._stream.wait_stream(compute)  # the buffer is free, and lock-step hops wait for compute
            with torch.cuda.stream(self._stream):
                begun = recorded()
                self._swap({route.after: shards[hop - 1]}, {route.before: shards[hop]})
                ended = recorded()
                arrived.append(torch.cuda.Event())
                arrived[-1].record()
            shards[hop - 1].record_stream(self._stream)
            shards[hop].record_stream(self._stream)
            self.transfers.add([partial(since, begun, ended)])

        for _ in range(min(ring_pass.prefetch_hops or route.hops, route.hops)):
            post()
        yield PendingShard.local(self.rank, k, v)
        for hop in range(1, route.hops + 1):

            def receive(hop: int = hop) -> torch.Tensor:
                compute.wait_event(arrived[hop - 1])
                if len(shards) <= route.hops:
                    post()
                return shards[hop]

            yield PendingShard(route.source(hop), receive)

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

    def barrier(self) -> None:
        dist.all_reduce(torch.zeros(1, device=self._device), group=self._group)
