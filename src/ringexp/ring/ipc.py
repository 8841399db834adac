"""The CUDA transport on one machine: ranks write into each other's memory, several to a GPU if need be.

A shard goes straight from its owner's keys and values into the inboxes of peers on other GPUs, beside the
first block: carried by its kernel if that can (`RingPass.kernel_sends`), else by copy engines, which take no
SM. Peers on the owner's own GPU copy nothing: they compute with what it has laid out in its outbox. Each peer
signals when it is done with a shard, and only then gets the next. Ranks signal each other through flags in
device memory. Streams or kernels set the flags and wait for them, so the host never blocks, and a CUDA graph
can capture an iteration. A shard may come in pieces of some heads, each with a flag.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch
import torch.distributed as dist

from ringexp.planning import ring_members
from ringexp.ring import cuda_driver as driver
from ringexp.ring.ipc_memory import MAX_PIECES, PeerMemory
from ringexp.ring.ipc_pass import IpcPass, Surroundings
from ringexp.ring.ipc_pieces import shard_bytes
from ringexp.ring.ipc_signals import Signals
from ringexp.ring.messages import Messages
from ringexp.ring.pending import PendingShard
from ringexp.ring.transport import Connection, RingPass, Transport, lay_out, shard_shape


class IpcTransport(Transport):
    """CUDA IPC between the ranks of one machine; `group` needs a gloo backend to exchange handles over.

    kernel_sends: kernels that can carry shards do so; False: copy engines carry all of them.
    """

    name = "ipc"
    capturable = True

    def __init__(
        self, device: torch.device, group: dist.ProcessGroup | None = None, key: bytes = b""
    ) -> None:
        messages = Messages(group, (driver.SharedMemory,), key, "ipc")
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        facts = messages.all_gather((driver.device_id(device), driver.capability(device)))
        devices, capabilities = zip(*facts, strict=True)
        shares_gpu = len(set(devices)) < world
        memory = PeerMemory(device, group, messages, outboxes=shares_gpu, inboxes=len(set(devices)) > 1)
        super().__init__(rank, memory)
        self._here = Surroundings(
            rank,
            device,
            near=frozenset(peer for peer in memory.peers if devices[peer] == devices[rank]),
            memory=memory,
            signals=Signals(rank, device, memory),
            stream=torch.cuda.Stream(device),
            counts=torch.zeros(2 + MAX_PIECES, dtype=torch.int32, device=device),
            transfers=self.transfers,
        )
        # On a shared GPU kernels that wait could keep the SMs that a rank needs to get as far as sending. All
        # ranks have to agree on pieces, so on a kernel that waits for them.
        self.announces = not shares_gpu and len(set(capabilities)) == 1
        # Slow stores hold up an SM.
        self.kernel_sends = all(driver.over_nvlink(device, other) for other in {*devices} - {devices[rank]})

    @classmethod
    def connect(cls, connection: Connection) -> IpcTransport:
        return cls(connection.device, connection.group, connection.key)

    def circulate(self, k: torch.Tensor, v: torch.Tensor, ring_pass: RingPass) -> Generator[PendingShard]:
        here = self._here
        here.memory.reserve(shard_bytes(k, max(ring_pass.tokens)))
        near = [peer for peer in ring_members(ring_pass.tokens) if peer in here.near]
        if near:
            here.signals.reclaim(near)
            outbox = here.memory.outbox(2 * k.nbytes).view(k.dtype)
            lay_out(k, v, outbox.view(shard_shape(k, k.shape[1])))
            here.signals.publish(near)
        return IpcPass(here, k, v, ring_pass, self.announces, self.kernel_sends).shards()

    def exchange(
        self,
        sends: Mapping[int, torch.Tensor],
        receives: Mapping[int, torch.Tensor],
        sizes: Sequence[Sequence[int]],
    ) -> None:
        memory, signals = self._here.memory, self._here.signals
        starts = [[sum(row[:peer]) for peer in range(len(sizes))] for row in sizes]
        memory.grow(outbox_bytes=max(map(sum, sizes)), slot_bytes=0)
        signals.reclaim(memory.peers)
        for peer, tensor in sends.items():
            start, size = starts[self.rank][peer], sizes[self.rank][peer]
            assert tensor.nbytes == size, (peer, tensor.nbytes, size)
            memory.outbox(start + size)[start:].copy_(tensor.contiguous().view(-1).view(torch.uint8))
        signals.publish(memory.peers)
        stream = torch.cuda.current_stream(self._here.device)
        for peer in memory.peers:
            signals.wait_for(peer)
            if peer in receives:
                source = memory.outbox_of(peer) + starts[peer][self.rank]
                driver.copy(stream, receives[peer].data_ptr(), source, receives[peer].nbytes)
            signals.give_back([peer])

    def barrier(self) -> None:
        self._here.memory.grow(0, 0)
        self._here.signals.barrier()

    def close(self) -> None:
        self._here.memory.close()
