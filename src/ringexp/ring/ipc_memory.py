"""Device memory that the ranks of one machine map into each other's address space.

Each rank has flags about every peer, an outbox that peers on its own GPU read, and an inbox with one slot for
each peer on another GPU to write into.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from ringexp.choices import TRANSPORTS
from ringexp.ring import cuda_driver as driver
from ringexp.ring.messages import Messages
from ringexp.ring.transport import TransportMemory

MAX_PIECES = 32  # of a shard
TAKEN, READY = 0, 1  # flags about a peer; there is one READY per piece
BARRIER = READY + MAX_PIECES  # two flags, used in turn
_FLAGS = BARRIER + 2
_FLAG_BYTES = 16  # as far apart as kernels want words to be
_ALIGNMENT = 512


class PeerMemory(TransportMemory):
    """One rank's memory and the addresses of its peers'. It is kept between iterations.

    Args:
        messages: Carries handles; its group has a gloo backend.
        outboxes: Some two ranks share a GPU, so there are outboxes for the longest shard.
        inboxes: Some two ranks are on different GPUs, so there are slots for the longest shard.
    """

    def __init__(
        self,
        device: torch.device,
        group: dist.ProcessGroup | None,
        messages: Messages,
        outboxes: bool,
        inboxes: bool,
    ) -> None:
        self._device, self._group, self._messages = device, group, messages
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._outboxes, self._inboxes = outboxes, inboxes
        self.slots_per_shard = TRANSPORTS["ipc"].slots_per_far_shard if inboxes else 1
        self.epoch = 0
        self._flags_bytes = _aligned(_FLAGS * self._world * _FLAG_BYTES)
        self._outbox_bytes = self._slot_bytes = 0
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)  # flags, outbox, inbox
        self._mappings: dict[int, int] = {}
        self._addresses: dict[int, int] = {}  # of the peers' memory

    @property
    def peers(self) -> list[int]:
        return [peer for peer in range(self._world) if peer != self._rank]

    def reserve(self, num_bytes: int) -> None:
        self.grow(num_bytes if self._outboxes else 0, num_bytes if self._inboxes else 0)

    def grow(self, outbox_bytes: int, slot_bytes: int) -> None:
        """Make outboxes and slots of all ranks at least this long; all call it with the same numbers."""
        if self._memory.nbytes and outbox_bytes <= self._outbox_bytes and slot_bytes <= self._slot_bytes:
            return
        self.close()
        self._outbox_bytes = max(self._outbox_bytes, _aligned(outbox_bytes))
        self._slot_bytes = max(self._slot_bytes, _aligned(slot_bytes))
        num_bytes = self._flags_bytes + self._outbox_bytes + self._slot_bytes * (self._world - 1)
        self._memory = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        flags = self._flag_words()
        flags.zero_()
        flags[TAKEN : _FLAGS * self._world : _FLAGS] = 1
        torch.cuda.synchronize(self._device)
        shared = self._messages.all_gather(driver.export(self._memory))
        for peer in self.peers:
            self._mappings[peer], self._addresses[peer] = driver.open_shared(shared[peer])
        self.epoch += 1
        dist.barrier(self._group)

    def flag(self, owner: int, flag: int, peer: int) -> int:
        """Return the address of a flag in `owner`'s memory about `peer`."""
        return self._address(owner) + (peer * _FLAGS + flag) * _FLAG_BYTES

    def ready_words(self, source: int, pieces: int) -> torch.Tensor:
        """Return the flags of a source's pieces as a tensor, int32 [pieces]."""
        return self._flag_words()[:, 0][source * _FLAGS + READY :][:pieces]

    def outbox(self, num_bytes: int) -> torch.Tensor:
        """Return the first bytes of this rank's outbox, uint8 [num_bytes]."""
        return self._memory[self._flags_bytes :][:num_bytes]

    def outbox_of(self, owner: int) -> int:
        """Return the address of `owner`'s outbox."""
        return self._address(owner) + self._flags_bytes

    def slot(self, owner: int, source: int) -> int:
        """Return the address of the slot in `owner`'s inbox into which `source` writes."""
        inbox = self.outbox_of(owner) + self._outbox_bytes
        return inbox + (source - (source > owner)) * self._slot_bytes

    def close(self) -> None:
        """Unmap the peers' memory and free this rank's; all ranks call it, with all work done."""
        torch.cuda.synchronize(self._device)
        for mapping in self._mappings.values():
            driver.close_shared(mapping)
        self._mappings, self._addresses = {}, {}
        dist.barrier(self._group)  # peers let go before the memory does
        self._memory = self._memory.new_empty(0)

    def _address(self, owner: int) -> int:
        return self._memory.data_ptr() if owner == self._rank else self._addresses[owner]

    def _flag_words(self) -> torch.Tensor:
        """Return all flags, int32 [flags, 4]: the first word of each row is a flag."""
        return self._memory[: self._flags_bytes].view(-1, _FLAG_BYTES).view(torch.int32)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
