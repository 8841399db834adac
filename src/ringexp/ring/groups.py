"""Process groups as rings: a process's place in one, and its transport, kept from call to call.

A transport is made at a group's first ring and kept until `close`, with a thread (gloo) or device memory that
peers have mapped (ipc), and it keeps the group alive.
"""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist

from ringexp.config import TRANSPORTS
from ringexp.errors import UserError
from ringexp.ring.cuda_driver import device_id
from ringexp.ring.messages import Messages
from ringexp.ring.transport import LoopbackTransport, Transport, make_transport

_BACKENDS = {"nccl": "cuda", "gloo": "cpu"}
"""The type of device for which a transport needs the group's backend of its name."""

_kept: dict[tuple[dist.ProcessGroup | None, torch.device, str], Transport] = {}


def place_in(group: dist.ProcessGroup | None, world_size: int | None = None) -> tuple[int, int]:
    """This process's rank in the group and the group's size; None is the default group.

    Without torch.distributed that is a ring of one. Raises UserError if the process is not in the group, or
    the group is not of `world_size`.
    """
    distributed = _resolved(group) is not None
    rank, size = (dist.get_rank(group), dist.get_world_size(group)) if distributed else (0, 1)
    if rank < 0:
        raise UserError("this process is not in the group; only the group's own ranks may call")
    if world_size not in (None, size):
        raise UserError(
            f"the plan is for {world_size} ranks, but the group has {size}; plan one speed a rank"
        )
    return rank, size


def transport_of(group: dist.ProcessGroup | None, device: torch.device, name: str = "auto") -> Transport:
    """The group's transport for tensors on `device`, made at the first call, which all its ranks make.

    auto: what the group's backend for the device can do, see `_fitting`. Raises UserError for a transport
    that is unknown or cannot work there.
    """
    key = (_resolved(group), device, name)
    if key not in _kept:
        if key[0] is None:
            _kept[key] = LoopbackTransport()
        elif name == "auto":
            _kept[key] = transport_of(group, device, _fitting(group, device))
        else:
            _check(name, device, _backends(group))
            with current(device):
                transport = make_transport(name, device, group)
                transport.barrier()  # NCCL wants all ranks in a group's first call, also those without tokens
            _kept[key] = transport
    return _kept[key]


def close(group: dist.ProcessGroup | None = None) -> None:
    """Free what rings keep for a group, None: the default one. All its ranks call it, with all work done.

    Call it before the group is destroyed. The next ring of the group starts anew.
    """
    for key in [key for key in _kept if key[0] is _resolved(group)]:
        transport = _kept.pop(key)
        if transport not in _kept.values():  # by another name
            with current(key[1]):
                transport.close()


def meeting_place(device: torch.device, group: dist.ProcessGroup | None = None) -> torch.device:
    """Where the few numbers lie that ranks tell each other: on the host, if the group has gloo there."""
    on_host = _resolved(group) is not None and _backends(group).get("cpu") == "gloo"
    return torch.device("cpu") if on_host else device


def broadcast(x: torch.Tensor, source: int, group: dist.ProcessGroup | None = None) -> None:
    """Make x, on every rank of the group, what it is on its rank `source`.

    CUDA tensors go over gloo by way of the host: on a GPU other than the first, gloo's own threads would take
    memory of the first one, too, and end the process where MPS refuses it.
    """
    if x.is_cuda and _backends(group).get("cuda") == "gloo":
        staged = x.cpu() if dist.get_rank(group) == source else torch.empty_like(x, device="cpu")
        dist.broadcast(staged, group=group, group_src=source)
        x.copy_(staged)
    else:
        dist.broadcast(x, group=group, group_src=source)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device the current one, which events and the driver's calls are about."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _resolved(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group itself, so that None and the default group are one; None without torch.distributed."""
    return group if group is not None or not dist.is_initialized() else dist.group.WORLD


def _fitting(group: dist.ProcessGroup | None, device: torch.device) -> str:
    """For CUDA ipc where ranks are on one machine and reach each other's memory, if the group has gloo.

    Else nccl if the group has that, or gloo.
    """
    backends = _backends(group)
    if device.type == "cuda" and backends.get("cpu") == "gloo" and _all_reach(group, device):
        return "ipc"
    return "nccl" if backends.get(device.type) == "nccl" else "gloo"


def _all_reach(group: dist.ProcessGroup | None, device: torch.device) -> bool:
    """Whether the group's ranks are on one machine whose GPUs, theirs, can access each other."""
    known = {device_id(torch.device("cuda", index)): index for index in range(torch.cuda.device_count())}
    own = device_id(device)
    reached = [
        name
        for name, index in known.items()
        if name == own or torch.cuda.can_device_access_peer(known[own], index)
    ]
    ranks = Messages(group).all_gather((platform.node(), own, reached))
    return len({host for host, _, _ in ranks}) == 1 and all(
        name in there for _, name, _ in ranks for _, _, there in ranks
    )


def _backends(group: dist.ProcessGroup | None) -> dict[str, str]:
    """The group's backend for each type of device."""
    return dict(entry.split(":") for entry in dist.get_backend_config(group).split(","))


def _check(name: str, device: torch.device, backends: dict[str, str]) -> None:
    if name not in TRANSPORTS:
        raise UserError(f"transport={name} is unknown; choose one of {', '.join(TRANSPORTS)}")
    if name in ("nccl", "ipc") and device.type != "cuda":
        raise UserError(f"transport={name} needs CUDA, but the tensors are on {device}; use transport=auto")
    if name in _BACKENDS and backends.get(_BACKENDS[name]) != name:
        raise UserError(
            f"transport={name} needs a group with {_BACKENDS[name]}:{name}, and this one has {backends}; "
            'make it with backend="cpu:gloo,cuda:nccl"'
        )
