"""Process groups as rings: the transport of each, kept from call to call.

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
from ringexp.ring.gloo import GlooTransport
from ringexp.ring.loopback import LoopbackTransport
from ringexp.ring.messages import Messages
from ringexp.ring.ring_group import backends, forget_ring_group, ring_group_of
from ringexp.ring.transport import Transport, make_transport

_BACKENDS = {"nccl": "cuda", "gloo": "cpu"}
"""The type of device for which a transport needs the group's backend of its name."""


def transport_of(group: dist.ProcessGroup | None, device: torch.device, name: str = "auto") -> Transport:
    """Return the group's transport for tensors on `device`, made at the first call, which all its ranks make.

    auto: what the group's backend for the device can do, see `_fitting`. Raises UserError for a transport
    that is unknown or cannot work there.
    """
    ring_group = ring_group_of(group)
    kept, key = ring_group.transports, (device, name)
    if key not in kept:
        if ring_group.size == 1 and not dist.is_initialized():
            kept[key] = LoopbackTransport()
        elif name == "auto":
            ring_group.meet()
            kept[key] = transport_of(group, device, _fitting(group, device))
        else:
            _check(name, device, backends(group))
            ring_group.meet()
            with current(device):
                if name == "gloo" and ring_group.linked:
                    transport: Transport = GlooTransport(ring_group.links)
                else:
                    transport = make_transport(name, device, group)
                transport.barrier()  # NCCL wants all ranks in a group's first call, also those without tokens
            kept[key] = transport
    return kept[key]


def close(group: dist.ProcessGroup | None = None) -> None:
    """Free what rings keep for a group, None: the default one. All its ranks call it, with all work done.

    Call it before the group is destroyed, and after a call that has failed. The next ring of the group starts
    anew.
    """
    ring_group = forget_ring_group(group)
    if ring_group is not None:
        by_transport = {transport: device for (device, _), transport in ring_group.transports.items()}
        for transport, device in by_transport.items():
            with current(device):
                transport.close()
        ring_group.let_go()


def broadcast(x: torch.Tensor, source: int, group: dist.ProcessGroup | None = None) -> None:
    """Make x, on every rank of the group, what it is on its rank `source`.

    CUDA tensors go over gloo by way of the host: on a GPU other than the first, gloo's own threads would take
    memory of the first one, too, and end the process where MPS refuses it.
    """
    if x.is_cuda and backends(group).get("cuda") == "gloo":
        staged = x.cpu() if dist.get_rank(group) == source else torch.empty_like(x, device="cpu")
        dist.broadcast(staged, group=group, group_src=source)
        x.copy_(staged)
    else:
        dist.broadcast(x, group=group, group_src=source)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device the current one, which events and the driver's calls are about."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _fitting(group: dist.ProcessGroup | None, device: torch.device) -> str:
    """For CUDA ipc where ranks are on one machine and reach each other's memory, if the group has gloo.

    Else nccl if the group has that, or gloo.
    """
    known = backends(group)
    if device.type == "cuda" and known.get("cpu") == "gloo" and _all_reach(group, device):
        return "ipc"
    return "nccl" if known.get(device.type) == "nccl" else "gloo"


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


def _check(name: str, device: torch.device, known: dict[str, str]) -> None:
    if name not in TRANSPORTS:
        raise UserError(f"transport={name} is unknown; choose one of {', '.join(TRANSPORTS)}")
    if name in ("nccl", "ipc") and device.type != "cuda":
        raise UserError(f"transport={name} needs CUDA, but the tensors are on {device}; use transport=auto")
    if name in _BACKENDS and known.get(_BACKENDS[name]) != name:
        raise UserError(
            f"transport={name} needs a group with {_BACKENDS[name]}:{name}, and this one has {known}; "
            'make it with backend="cpu:gloo,cuda:nccl"'
        )
