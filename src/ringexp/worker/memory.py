"""The memory that a job needs per rank, and the memory that each rank may use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ringexp.models.workload import Workload
from ringexp.planning import MemoryNeed
from ringexp.planning.memory import GIB
from ringexp.ring.transport import Transport
from ringexp.worker.communicator import Communicator

FRAGMENTED = 0.05
"""The part of the free CUDA memory that the allocator is assumed to lose in gaps."""


def memory_need(workload: Workload, transport: Transport, chunks: int, decodes: bool) -> MemoryNeed:
    """Return what a prompt needs of a rank's memory, transport and cache included.

    Args:
        workload: what the ranks compute.
        transport: what carries shards.
        chunks: the number of chunks that the prompt is prefilled in.
        decodes: tokens are decoded after prefill. Decoding, and prefill in chunks, keep a cache.
    """
    need = workload.memory
    if decodes or chunks > 1:
        cache = workload.shape.layers * need.kv_token
        # The ring sends all keys and values of a layer; all else is there for one chunk at a time.
        activations = need.kv_token + -(-(need.own_token - need.kv_token) // chunks)
        need = replace(need, own_token=cache + activations)
    # Slots are as long as the longest shard of any rank. Ranks on one GPU need theirs in the outbox only.
    return replace(need, kv_token=transport.memory.slots_per_shard * need.kv_token)


@dataclass(frozen=True)
class RankMemory:
    """The memory of the ranks, for one job.

    Attributes:
        communicator: the ranks.
        device: this rank's device.
        ranks_per_device: the number of ranks that share the device.
        limits_gib: per rank the limit; None for what CUDA has free, and for no limit on the CPU.
        need: what a prompt needs.
    """

    communicator: Communicator
    device: torch.device
    ranks_per_device: int
    limits_gib: Sequence[float | None]
    need: MemoryNeed

    def max_tokens(self, seq_len: int) -> list[int | None]:
        """Return per rank the most tokens of a prompt that its memory holds; None for no limit."""
        limit = self._limit_bytes()
        return self.communicator.gather(None if limit is None else self.need.max_tokens(limit, seq_len))

    def limits(self) -> list[float]:
        """Return the limits of all ranks that have one, in bytes."""
        limits = self.communicator.gather(self._limit_bytes())
        return [limit for limit in limits if limit is not None]

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Make CUDA keep this rank within its limit, if a limit is set."""
        limit_gib = self.limits_gib[self.communicator.rank]
        if self.device.type == "cpu" or limit_gib is None:
            yield
            return
        limit, whole = GIB * limit_gib, torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def _limit_bytes(self) -> float | None:
        """Return this rank's limit; without a setting, its part of what CUDA has free or holds for it."""
        limit = self.limits_gib[self.communicator.rank]
        if limit is not None:
            return GIB * limit
        if self.device.type == "cpu":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        available = free / self.ranks_per_device + torch.cuda.memory_reserved(self.device)
        return available * (1 - FRAGMENTED)
