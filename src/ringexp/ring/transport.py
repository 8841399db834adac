"""Transports carry key/value shards between the ranks of a ring.

`circulate` yields the shards in order of arrival, the rank's own first. A shard is passed on as soon as it is
there. Passing on never waits for compute unless `prefetch_hops` says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from ringexp.choices import TRANSPORTS
from ringexp.ring.links import Links
from ringexp.ring.pending import PendingShard
from ringexp.ring.route import Route
from ringexp.ring.transfers import Transfers


@dataclass(frozen=True)
class RingPass:
    """Options of one pass of all shards round the ring.

    Attributes:
        tokens: The number of keys/values per rank. Ranks with 0 are not in the ring.
        prefetch_hops: The number of hops that are posted ahead of compute; None: all of them.
        needed: Returns for (rank, source) the range of a shard's tokens that the rank computes with; None:
            all of them. A transport may carry more.
        heads_first_hops: For this many first hops, deliver shards in groups of heads, and announce them. Only
            for transports that announce shards; equal on all ranks.
        kernel_sends: The first kernel launch of this rank can carry the shards of those hops itself.
    """

    tokens: Sequence[int]
    prefetch_hops: int | None = None
    needed: Callable[[int, int], range] | None = None
    heads_first_hops: int = 0
    kernel_sends: bool = False

    def needed_of(self, rank: int, source: int) -> range:
        """Return the range of a source's tokens that a rank needs."""
        return self.needed(rank, source) if self.needed else range(self.tokens[source])


class TransportMemory:
    """The device memory that a transport keeps from ring to ring. This class is for transports without any.

    Attributes:
        slots_per_shard: The number of places that each other rank's shard has in a rank's memory: one for
            the ring to compute with, and those that are kept here.
        epoch: Changes when memory that a captured graph points to has moved, on all ranks alike.
    """

    slots_per_shard = 1
    epoch = 0

    def reserve(self, num_bytes: int) -> None:
        """Make ready for shards of up to `num_bytes`. All ranks call it, also those not in the ring."""


@dataclass(frozen=True)
class Connection:
    """Everything that a rank makes its end of a transport from.

    Attributes:
        group: None is the default group.
        key: The run's secret, for messages between its ranks; empty if they have none.
        links: Connections of a ring group to all ranks, in place of the group's own.
    """

    device: torch.device
    group: dist.ProcessGroup | None = None
    key: bytes = b""
    links: Links | None = None


class Transport(ABC):
    """Carries shards between the ranks of one process group.

    Attributes:
        name: As in `choices.TRANSPORTS`.
        capturable: A CUDA graph can hold its work.
        announces: Shards of the first hops can come in groups of heads, for kernels that wait for them.
        rank: This rank.
        transfers: The hops that it has begun.
        memory: What it keeps from ring to ring.
    """

    name: ClassVar[str]
    capturable: ClassVar[bool] = False
    announces: bool = False

    def __init__(self, rank: int, memory: TransportMemory | None = None) -> None:
        self.rank, self.memory, self.transfers = rank, memory or TransportMemory(), Transfers()

    @classmethod
    def connect(cls, connection: Connection) -> Transport:
        """Return this rank's end of a new transport. All ranks call it."""
        raise NotImplementedError(f"{cls.__name__} connects no processes")

    def arrival_order(self, tokens: Sequence[int]) -> list[int]:
        """Return whose shards `circulate` yields, in order; tokens: as in `RingPass`."""
        return Route.of(tokens, self.rank).sources

    @abstractmethod
    def circulate(self, k: torch.Tensor, v: torch.Tensor, ring_pass: RingPass) -> Generator[PendingShard]:
        """Pass k and v [B, L, Hkv, D] round the ring, and yield everybody's shards as `arrival_order` says.

        Every yielded shard stays valid until the generator finishes. Always exhaust the generator, or close()
        it if an exception ends the ring. Ranks that are not in the ring do not call this.
        """

    @abstractmethod
    def exchange(
        self,
        sends: Mapping[int, torch.Tensor],
        receives: Mapping[int, torch.Tensor],
        sizes: Sequence[Sequence[int]],
    ) -> None:
        """Send and receive contiguous tensors by peer; return when `receives` may be used.

        All ranks call it. sizes[s][r] is the number of bytes that rank s sends to rank r.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Wait until all ranks have come here; on CUDA the current stream waits."""

    def close(self) -> None:  # noqa: B027
        """Free what peers share. All ranks call it, with all work done."""


def shard_shape(k: torch.Tensor, tokens: int) -> tuple[int, ...]:
    """Return the shape of a shard [2, B, tokens, Hkv, D] of the same model as the keys k [B, L, Hkv, D]."""
    return (2, k.shape[0], tokens, *k.shape[2:])


def lay_out(k: torch.Tensor, v: torch.Tensor, shard: torch.Tensor) -> None:
    """Copy keys and values into the shard that is sent. Two copies are far faster than `torch.stack`."""
    shard[0].copy_(k)
    shard[1].copy_(v)


def resolved(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return the group itself; None means the default one."""
    group = group if group is not None else dist.group.WORLD
    assert group is not None
    return group


def make_transport(
    name: str,
    device: torch.device,
    group: dist.ProcessGroup | None = None,
    key: bytes = b"",
    links: Links | None = None,
) -> Transport:
    """Return the transport of a resolved name. The group is initialised; the rest is as in `Connection`."""
    kind: type[Transport] = TRANSPORTS[name].load()
    return kind.connect(Connection(device, group, key, links))
