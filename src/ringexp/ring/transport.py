"""Transports: carry key/value shards round the ring, each passed on as soon as it is there.

`circulate` yields (source, arrival) in order of arrival, the rank's own shard first; `arrival()` returns the
keys and values, [B, L, Hkv, D] each, once computing may use them. Passing on never waits for compute unless
`prefetch_hops` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed as dist

from ringexp.kernels import Sending
from ringexp.planning import ring_members
from ringexp.ring.timing import Origin

Arrival = Callable[[], "torch.Tensor | tuple[torch.Tensor, torch.Tensor]"]
"""Keys and values: a pair for the rank's own, one tensor [2, B, L, Hkv, D] for those of others."""


class Announcement(NamedTuple):
    """A shard that is still to come, and the words of it as in `kernels.Arriving`."""

    shard: torch.Tensor
    words: torch.Tensor
    taken: int


@runtime_checkable
class Announced(Protocol):
    """An `Arrival` that kernels can await by themselves, instead of the stream."""

    def __call__(self) -> torch.Tensor: ...

    def announced(self) -> Announcement:
        """In place of the call; the kernel that awaits it then hands it back."""
        ...


@dataclass(frozen=True)
class LocalShard:
    """The `Arrival` of the rank's own shard, keys and values [B, L, Hkv, D].

    sending: what the first launch has to send of it, where `RingPass.by_kernel` asks for that.
    """

    k: torch.Tensor
    v: torch.Tensor
    sending: Sending | None = None

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.k, self.v


Transfer = Callable[[Origin], tuple[float | None, float]]
"""When a hop began, from a clock's `origin`, and how long it took, in ms; to be asked once it has arrived.

None: it began with the attention that it is for.
"""


@dataclass(frozen=True)
class Route:
    """The ring as one of its members sees it: ranks that hold tokens, in rank order."""

    members: list[int]
    place: int  # of this rank

    @classmethod
    def of(cls, tokens: Sequence[int], rank: int) -> Route:
        members = ring_members(tokens)
        return cls(members, members.index(rank))

    @property
    def hops(self) -> int:
        return len(self.members) - 1

    def source(self, hop: int) -> int:
        """Whose shard arrives with a hop; hop 0 is the rank's own."""
        return self.members[(self.place - hop) % len(self.members)]

    @property
    def sources(self) -> list[int]:
        """Whose shards this rank computes with, in order of arrival."""
        return [self.source(hop) for hop in range(self.hops + 1)]

    @property
    def after(self) -> int:
        return self.source(-1)

    @property
    def before(self) -> int:
        return self.source(1)


@dataclass(frozen=True)
class RingPass:
    """One way of all shards round the ring.

    tokens: of each rank's keys/values; ranks with 0 are not in the ring. prefetch_hops: hops posted ahead of
    compute, None: all. by_heads: some heads before others for so many first hops, if the transport announces
    those; all ranks say the same. by_kernel: the first launch of this rank can do these hops.
    needed: (rank, source) -> how many of the first tokens of a shard a rank computes with, None: all; a
    transport may carry more.
    """

    tokens: Sequence[int]
    prefetch_hops: int | None = None
    needed: Callable[[int, int], int] | None = None
    heads_first_hops: int = 0
    by_kernel: bool = False

    def carried(self, rank: int, source: int) -> int:
        """How many tokens of a source's shard a rank needs."""
        return self.needed(rank, source) if self.needed else self.tokens[source]


class Transport(Protocol):
    name: str
    capturable: bool  # in a CUDA graph
    announces: bool  # what arrives `heads_first_hops` is `Announced`
    epoch: int  # another one once memory that a captured graph points to has moved, on all ranks alike

    def circulate(self, k: torch.Tensor, v: torch.Tensor, trip: RingPass) -> Generator[tuple[int, Arrival]]:
        """Pass k and v [B, L, Hkv, D] round as one shard [2, B, L, Hkv, D].

        A shard is there for what is launched until the generator has ended, to which it has to be brought, or
        closed if an exception ends the ring. Ranks that are not in the ring do not call it.
        """
        ...

    def reserve(self, num_bytes: int) -> None:
        """Make ready for shards of up to `num_bytes`; all ranks call it, also those not in the ring."""
        ...

    def exchange(
        self,
        sends: Mapping[int, torch.Tensor],
        receives: Mapping[int, torch.Tensor],
        sizes: Sequence[Sequence[int]],
    ) -> None:
        """Send and receive contiguous tensors by peer; returns when `receives` may be used.

        All ranks call it, and sizes[s][r] is how many bytes s sends r.
        """
        ...

    def take_transfers(self) -> list[Transfer]:
        """The hops since the last call, in order. Those of a graph's capture are about its latest replay."""
        ...

    def barrier(self) -> None:
        """Line the ranks up; on CUDA in stream order."""
        ...

    def close(self) -> None:
        """Let go of what peers share; all ranks call it, with all work done."""
        ...


def shard_shape(k: torch.Tensor, tokens: int) -> tuple[int, ...]:
    """The shape of a shard [2, B, tokens, Hkv, D], of the same model as the keys k [B, L, Hkv, D]."""
    return (2, k.shape[0], tokens, *k.shape[2:])


def lay_out(k: torch.Tensor, v: torch.Tensor, shard: torch.Tensor) -> None:
    """Copy keys and values into the shard that is sent: two copies are far faster than `torch.stack`."""
    shard[0].copy_(k)
    shard[1].copy_(v)


def resolved(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The group itself; None means the default one."""
    found = group if group is not None else dist.group.WORLD
    assert found is not None
    return found


class LoopbackTransport:
    """A ring of one process: shards that would arrive are the rank's own again. For measuring compute.

    announces, lays_out: as of the transport whose rings it stands for, whether shards come before they are
    whole, and whether the rank's own is copied to be sent. Here everything is there at once.
    """

    name = "loopback"
    capturable = True
    epoch = 0

    def __init__(self, rank: int = 0, announces: bool = False, lays_out: bool = False) -> None:
        self._rank, self.announces, self._lays_out = rank, announces, lays_out
        self._repeated: dict[tuple[Any, ...], torch.Tensor] = {}

    def circulate(self, k: torch.Tensor, v: torch.Tensor, trip: RingPass) -> Generator[tuple[int, Arrival]]:
        sources = Route.of(trip.tokens, self._rank).sources
        if self._lays_out and len(sources) > 1:
            lay_out(k, v, k.new_empty(shard_shape(k, k.shape[1])))
        for source in sources:
            if source == self._rank:
                yield source, LocalShard(k, v)
            else:
                shard = self._of_length(k, v, trip.tokens[source])
                yield source, lambda shard=shard: shard

    def _of_length(self, k: torch.Tensor, v: torch.Tensor, length: int) -> torch.Tensor:
        """The shard repeated to another length; made once, so that only computing is measured."""
        key = (length, k.shape, k.dtype)
        if key not in self._repeated:
            index = torch.arange(length, device=k.device) % k.shape[1]
            shard = k.new_empty(shard_shape(k, length))
            for x, into in zip((k, v), shard, strict=True):
                torch.index_select(x, 1, index, out=into)
            self._repeated[key] = shard
        return self._repeated[key]

    def reserve(self, num_bytes: int) -> None: ...

    def exchange(
        self,
        sends: Mapping[int, torch.Tensor],
        receives: Mapping[int, torch.Tensor],
        sizes: Sequence[Sequence[int]],
    ) -> None:
        raise AssertionError("a ring of one has no peers")

    def take_transfers(self) -> list[Transfer]:
        return []

    def barrier(self) -> None: ...

    def close(self) -> None: ...


def make_transport(
    name: str, device: torch.device, group: dist.ProcessGroup | None = None, key: bytes = b""
) -> Transport:
    """Return the transport of a resolved name on an initialised process group; key: the run's secret."""
    from ringexp.ring.gloo import GlooTransport
    from ringexp.ring.ipc import IpcTransport
    from ringexp.ring.nccl import NcclTransport

    if name == "nccl":
        return NcclTransport(device, group)
    return IpcTransport(device, group, key) if name == "ipc" else GlooTransport(group)
