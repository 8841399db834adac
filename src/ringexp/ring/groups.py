"""Process groups as rings: each group's transports, kept from call to call.

A transport is made at a group's first ring and kept until `close`, with a thread (gloo) or device memory that
peers have mapped (ipc), and it keeps the group alive.
"""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist

from ringexp.choices import AUTO, TRANSPORTS, TransportSpec
from ringexp.errors import UserError
from ringexp.ring.cuda_driver import device_id
from ringexp.ring.loopback import LoopbackTransport
from ringexp.ring.messages import Messages
from ringexp.ring.ring_group import backends, forget_ring_group, ring_group_of
from ringexp.ring.transport import Transport, make_transport


def transport_of(group: dist.ProcessGroup | None, device: torch.device, name: str = "auto") -> Transport:
    """Return the group's transport for tensors on `device`. All its ranks make the first call together.

    Args:
        group: The process group; None is the default one.
        device: Where keys and values lie.
        name: A name of `choices.TRANSPORTS`, or auto for the first that works there.

    Raises:
        UserError: The transport is unknown, or cannot work there.
    """
    ring_group = ring_group_of(group)
    kept, key = ring_group.transports, (device, name)
    if key not in kept:
        if ring_group.size == 1 and not dist.is_initialized():
            kept[key] = LoopbackTransport()
        elif name == AUTO:
            ring_group.meet()
            kept[key] = transport_of(group, device, _fitting(group, device))
        else:
            TRANSPORTS.check(name)
            _check(TRANSPORTS[name], device, backends(group))
            ring_group.meet()
            with current(device):
                own_links = TRANSPORTS[name].own_connections and ring_group.linked
                links = ring_group.links if own_links else None
                transport = make_transport(name, device, group, links=links)
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
    """Make a CUDA device the current one, to which events and the driver's calls refer."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _fitting(group: dist.ProcessGroup | None, device: torch.device) -> str:
    """Return the first transport, in the order in which `auto` tries them, that works in the group.

    If none does, return the last one: its check says what the group lacks.
    """
    group_backends = backends(group)

    def works(spec: TransportSpec) -> bool:
        if device.type not in spec.devices or not _has_backend(spec, group_backends):
            return False
        if not spec.needs_peer_access:
            return True
        return group_backends.get("cpu") == "gloo" and _all_reach(group, device)

    ranked = sorted((spec.auto_rank, spec.name) for spec in TRANSPORTS if spec.auto_rank is not None)
    return next((name for _, name in ranked if works(TRANSPORTS[name])), ranked[-1][1])


def _all_reach(group: dist.ProcessGroup | None, device: torch.device) -> bool:
    """Tell whether the group's ranks are on one machine whose GPUs can access each other's memory."""
    indices = {device_id(torch.device("cuda", index)): index for index in range(torch.cuda.device_count())}
    this_gpu = device_id(device)
    reached = [
        gpu
        for gpu, index in indices.items()
        if gpu == this_gpu or torch.cuda.can_device_access_peer(indices[this_gpu], index)
    ]
    ranks = Messages(group).all_gather((platform.node(), this_gpu, reached))
    return len({host for host, _, _ in ranks}) == 1 and all(
        gpu in reachable for _, gpu, _ in ranks for _, _, reachable in ranks
    )


def _has_backend(spec: TransportSpec, group_backends: dict[str, str]) -> bool:
    """Tell whether a group has the backend that a transport needs of it."""
    return spec.backend is None or group_backends.get(spec.backend[0]) == spec.backend[1]


def _check(spec: TransportSpec, device: torch.device, group_backends: dict[str, str]) -> None:
    """Raise UserError if a transport cannot carry tensors on the device within a group."""
    if device.type not in spec.devices:
        needs = " or ".join(spec.devices).upper()
        raise UserError(
            f"transport={spec.name} needs {needs}, but the tensors are on {device}; use transport=auto"
        )
    if spec.backend and not _has_backend(spec, group_backends):
        raise UserError(
            f"transport={spec.name} needs a group with {':'.join(spec.backend)}, and this one has "
            f'{group_backends}; make it with backend="cpu:gloo,cuda:nccl"'
        )
