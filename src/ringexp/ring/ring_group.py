"""The ranks of a process group as one ring: if one rank fails in a call that all make, the others hear of it.

    with ring_group_of(group) as ring_group:    # in every such call
        ...

A rank that raises there leaves its error in the group's store and closes its connections to the others, which
the ring has of its own. So whoever waits for it wakes up at once and reads why. A call that goes well costs
nothing of this: no message, and no look into the store. After a failure the ring stays ended until it is
closed, unless every rank has refused the same call by an error of its own: then the next call goes on.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from ringexp.choices import TRANSPORTS
from ringexp.errors import RingError, UserError
from ringexp.ring.links import Links
from ringexp.ring.transport import Transport

_UNUSED_TAG = 1 << 20
_LONGEST_MESSAGE = 2000
_PATIENCE = timedelta(seconds=5)
"""The time that a rank which has refused a call waits until the other ranks have refused it too."""


class PeerLost(RuntimeError):
    """A connection to a peer has ended."""


class RingGroup:
    """A process's place in a group, its connections to the other ranks, and whether one of them has failed.

    rank, size: as in the group; a process without torch.distributed is alone. linked: whether it has
    connections on the host, which groups with gloo have. Without them, over nccl alone, ranks that already
    wait for a device are not woken. transports: those of the group, by device and name. ended: which rank
    failed, and why; empty while all is well.
    """

    def __init__(self, group: dist.ProcessGroup | None, name: str, turn: int = 0) -> None:
        self._group, self._name, self._turn = group, name, turn
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        self.linked = self.size > 1 and backends(group).get("cpu") == "gloo"
        self.transports: dict[tuple[torch.device, str], Transport] = {}
        self._links: Links | None = None
        self._met = self.size == 1
        self._depth = self._calls = 0
        self.ended, self._refused = "", False
        if group is not None:
            whole = dist.distributed_c10d._get_process_group_store(group)
            self._store = dist.PrefixStore(f"{name}/{turn}", whole)

    def check_size(self, world_size: int) -> None:
        """Raise UserError if a plan is for another number of ranks."""
        if world_size != self.size:
            raise UserError(
                f"the plan is for {world_size} ranks, but the group has {self.size}; plan one speed per rank"
            )

    def __enter__(self) -> RingGroup:
        if self.ended:
            raise RingError(
                f"the ring of this group has ended ({self.ended}); call ringexp.close(group) on all its "
                "ranks, then go on"
            )
        self._calls += not self._depth
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if error is None or self.size == 1 or self.ended:
            return
        self._refused = isinstance(error, UserError)
        self.ended = f"rank {self.rank} failed: {_described(error)}"
        with suppress(Exception):  # the store may be gone with the rank that hosts it
            if self._refused:
                self._store.add(f"refused/{self._calls}", 1)
            else:
                self._store.add("broken", 1)
            self.ended = self._first_failure()
        self._disconnect()
        if isinstance(error, PeerLost):
            raise RingError(f"{self.ended}; so the ring has ended on rank {self.rank}, too") from error

    def succeeded(self) -> RingGroup:
        """Return this ring group, or one that takes its place where all ranks have refused the same call."""
        if not (self.ended and self._refused and self._all_refused()):
            return self
        after = RingGroup(self._group, self._name, self._turn + 1)
        for (device, name), transport in self.transports.items():
            if TRANSPORTS[transport.name].own_connections:  # they are closed
                transport.close()
            else:
                after.transports[device, name] = transport
        return after

    @property
    def links(self) -> Links:
        """The connections to all ranks, if linked; made at the first use."""
        if self._links is None:
            self.meet()
            store = dist.PrefixStore("links", self._store)
            gloo = dist.ProcessGroupGloo(store, self.rank, self.size, _timeout(self._group))
            self._links = cast("Links", gloo)
            # To be freed by let_go alone: an interpreter that frees it while it ends does not return.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._links))
        return self._links

    def meet(self) -> None:
        """Wait until all ranks of the group have come here, or one has failed; only the first time."""
        if not self._met:
            self._store.add("arrived", 1)
            self._wait_for("arrived", "failure")
            self._met = True

    def broadcast(self, x: torch.Tensor, source: int) -> None:
        """Make x, on every rank of the group, what it is on its rank `source`.

        CUDA tensors go over gloo by way of the host: on a GPU other than the first, gloo's own threads would
        take memory of the first one, too, and end the process where MPS refuses it.
        """
        if self.size == 1:
            return
        if not self.linked or (x.is_cuda and backends(self._group).get("cuda") != "gloo"):
            dist.broadcast(x, group=self._group, group_src=source)
            return
        sends = self.rank == source
        staged = (x.detach() if sends else torch.empty_like(x, requires_grad=False)).cpu().contiguous()
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = source, 0
        as_bytes = staged.view(-1).view(torch.uint8)
        _finish(lambda: self.links.broadcast([as_bytes], options))
        if not sends:
            with torch.no_grad():
                x.copy_(staged)

    def all_reduce(self, x: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        """Reduce x, which lies where `place` says, over all ranks of the group."""
        if self.size > 1:
            _finish(lambda: self.begin_all_reduce(x, op))

    def begin_all_reduce(self, x: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> dist.Work:
        """Begin to reduce x over all ranks of the group, more than one."""
        if self.linked:
            options = dist.AllreduceOptions()
            options.reduceOp = dist.ReduceOp(op)
            return self.links.allreduce([x], options)
        work = dist.all_reduce(x, op, group=self._group, async_op=True)
        assert work is not None
        return work

    def place(self, device: torch.device) -> torch.device:
        """Return where small tensors that ranks exchange lie: on the CPU if ranks are connected there."""
        return torch.device("cpu") if self.linked else device

    def let_go(self) -> None:
        """Free the connections, with nothing under way. One that has ended has closed them already."""
        if self._links is not None and not self.ended:
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(self._links))
        self._links = None

    def _first_failure(self) -> str:
        """Return the group's first failure: the one in the store, or else this rank's, which is put there."""
        text = json.dumps(self.ended)
        first = self._store.compare_set("failure", "", text)
        text = json.loads(first)
        return text if isinstance(text, str) else self.ended

    def _disconnect(self) -> None:
        """Close the connections to all ranks, which wakes those that wait.

        A receive that times out closes all of them. One from a peer that has closed its own does not wait.
        """
        if self._links is None:
            return
        for peer in range(self.size):
            if peer != self.rank:
                with suppress(Exception):
                    self._links.recv([torch.empty(1)], peer, _UNUSED_TAG).wait(timedelta(milliseconds=1))

    def _all_refused(self) -> bool:
        """Tell whether every rank has refused the last call by an error of its own. Wait for late ranks.

        The first rank that knows the answer decides for all ranks.
        """
        try:
            self._wait_for(f"refused/{self._calls}", "broken", _PATIENCE)
            answer = "go on"
        except PeerLost:
            answer = "ended"
        decision = self._store.compare_set("decision", "", answer)
        self._refused = decision in ("go on", b"go on")
        return self._refused

    def _wait_for(self, counter: str, unless: str, patience: timedelta | None = None) -> None:
        """Wait until all ranks have added 1 to a counter in the store.

        Raises PeerLost if the key `unless` appears, or after `patience`; None: the group's timeout.
        """
        deadline = time.monotonic() + (patience or _timeout(self._group)).total_seconds()
        pause_s = 0.001
        while (count := self._store.add(counter, 0)) < self.size:
            if self._store.check([unless]):
                raise PeerLost("a peer has failed")
            if time.monotonic() > deadline:
                raise PeerLost(f"only {count} of {self.size} ranks came in time")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)


_ring_groups: dict[dist.ProcessGroup | None, RingGroup] = {}
_closed: dict[str, int] = {}
"""The number of times that a group's ring was closed, by the group's name; the same on all its ranks."""


def ring_group_of(group: dist.ProcessGroup | None) -> RingGroup:
    """Return the ring group of a process group, None: of the default one. Raises UserError outside of it."""
    key = _resolved(group)
    ring_group = _ring_groups.get(key)
    if ring_group is None:
        name = "alone"
        if key is not None:
            if dist.get_rank(key) < 0:
                raise UserError("this process is not in the group; only the group's own ranks may call")
            name = f"ringexp/{key.group_name}/{_closed.get(key.group_name, 0)}"
        ring_group = RingGroup(key, name)
    if ring_group.ended:
        ring_group = ring_group.succeeded()
    _ring_groups[key] = ring_group
    return ring_group


def forget_ring_group(group: dist.ProcessGroup | None) -> RingGroup | None:
    """Return the ring group of a process group, if any, and forget it. The next call makes another."""
    key = _resolved(group)
    if key is not None:
        _closed[key.group_name] = _closed.get(key.group_name, 0) + 1
    return _ring_groups.pop(key, None)


def backends(group: dist.ProcessGroup | None) -> dict[str, str]:
    """Return the group's backend for each type of device."""
    return dict(entry.split(":") for entry in dist.get_backend_config(group).split(","))


def _resolved(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """Return the group itself, so that None and the default group are one; None without torch.distributed."""
    return group if group is not None or not dist.is_initialized() else dist.group.WORLD


def _finish(begin: Callable[[], dist.Work]) -> None:
    """Begin a collective and wait for it. Raises PeerLost if a connection ends."""
    try:
        begin().wait()
    except RuntimeError as error:
        if isinstance(error, PeerLost):
            raise
        raise PeerLost(str(error)) from error


def _timeout(group: dist.ProcessGroup | None) -> timedelta:
    """Return how long the group's ranks wait for each other."""
    assert group is not None
    device = torch.device("cpu" if "cpu" in backends(group) else "cuda")
    timeout = getattr(group._get_backend(device).options, "_timeout", None)
    return timeout if isinstance(timeout, timedelta) else default_pg_timeout


def _described(error: BaseException) -> str:
    """Return an error's type and message in one line."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(text.split())[:_LONGEST_MESSAGE]
