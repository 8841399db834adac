"""Find settings that cannot work before any rank starts: in seconds, not half a minute.

`check_before_start` names the first such setting. The checks write nothing and use no GPU, since a CUDA
context in the launcher would be in the way of MPS.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ringexp.choices import AUTO, KERNELS, TRANSPORTS, TransportSpec
from ringexp.config import DEFAULT_TILE, Config
from ringexp.errors import UserError
from ringexp.hetero.throttle import load_throttle
from ringexp.machine import gpu_memory_bytes, memory_bytes
from ringexp.models.registry import model_of
from ringexp.planning import MemoryNeed, check_enough_tiles
from ringexp.planning.memory import GIB


@dataclass(frozen=True)
class Surroundings:
    """The devices and machines on which the ranks are going to run.

    Attributes:
        device: cuda or cpu.
        gpus: GPUs of all nodes together; None where their number is not known yet.
        nodes: the number of machines.
        here: whether the ranks run on this machine.
    """

    device: str
    gpus: int | None
    nodes: int = 1
    here: bool = True


def check_before_start(config: Config, transport: str, where: Surroundings) -> None:
    """Raise UserError for the first setting that cannot work there. transport: a name, or auto."""
    check_enough_tiles(config.seq_len, config.world_size, config.tile or DEFAULT_TILE[where.device])
    _check_folders(config)
    _check_devices(config, transport, where)
    _check_kernel(config, where.device)
    need = model_of(config.model).check_before_start(config.seq_len, config.decode_tokens)
    if need:
        _check_limits(config, need)
    if need and where.here:
        _check_memory(config, need, where)
    if where.here and config.hetero.throttle != AUTO:
        load_throttle(config.hetero.throttle).check_host()


def _check_folders(config: Config) -> None:
    """Check that the folders which runs share can be created, or exist and can be written to."""
    for folder in (config.speeds_file.parent, config.references_dir, config.completed_dir):
        nearest = folder
        while not os.path.lexists(nearest) and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise UserError(
                f"output_root={config.output_root} cannot be written to ({nearest} is no folder); choose a "
                "folder that can, with output_root=DIR"
            )
        if not config.dry_run and not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(
                f"output_root={config.output_root} cannot be written to ({nearest}: Permission denied); "
                "choose a folder that can, with output_root=DIR"
            )


def _check_devices(config: Config, transport: str, where: Surroundings) -> None:
    device, gpus = where.device, where.gpus
    if device == "cuda" and gpus == 0:
        raise UserError("device=cuda, but no CUDA device is visible; use device=cpu or device=auto")
    spec = TRANSPORTS.get(transport)  # None: auto, of a plan for other hardware
    if spec is not None:
        _check_transport(config, spec, where)
    if config.cuda_graph and (device != "cuda" or (spec is not None and not spec.capturable)):
        capturable = " or ".join(spec.name for spec in TRANSPORTS if spec.capturable)
        raise UserError(
            f"cuda_graph=true needs CUDA with transport={capturable}, but device={device} and "
            f"transport={transport}; use cuda_graph=null"
        )


def _check_transport(config: Config, spec: TransportSpec, where: Surroundings) -> None:
    """Check that a transport works between these ranks."""
    if where.nodes > 1 and not spec.several_machines:
        others = ", ".join(spec.name for spec in TRANSPORTS if spec.several_machines)
        raise UserError(
            f"transport={spec.name} is for ranks on one machine, and these are on {where.nodes}; use "
            f"transport={others} or auto"
        )
    if where.device not in spec.devices:
        raise UserError(
            f"transport={spec.name} needs {_shown(spec.devices)}, but device={where.device}; use "
            "transport=gloo or auto"
        )
    if spec.one_rank_per_gpu and where.gpus is not None and config.world_size > where.gpus:
        raise UserError(
            f"hetero.percentages={config.hetero.percentages} asks for {config.world_size} ranks, but "
            f"transport={spec.name} takes one rank per GPU, and {where.gpus} can be seen; use at most "
            f"{where.gpus} ranks, or transport=ipc"
        )


def _check_kernel(config: Config, device: str) -> None:
    """Check that a kernel chosen by name fits device, precision and head dimension, and has its package."""
    spec, model = KERNELS.get(config.kernel.name), config.model
    if spec is None:  # it is picked on the device
        return
    lacks = spec.why_unsuitable(device, model.dtype, "model.dtype") or spec.why_not_installed()
    if lacks:
        alternatives = " or ".join(f"kernel={name}" for name in spec.alternatives)
        raise UserError(f"kernel={spec.name} needs {lacks}; use {alternatives}")
    if device in spec.needs_probe:
        import torch

        from ringexp.kernels import get_kernel

        shape = model_of(model).shape
        get_kernel(spec.name, device, getattr(torch, model.dtype), shape.head_dim if shape else 128)


def _shown(devices: Sequence[str]) -> str:
    """Return device types as a message says them."""
    return " or ".join({"cuda": "CUDA", "cpu": "the CPU"}.get(device, device) for device in devices)


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _check_memory(config: Config, need: MemoryNeed, where: Surroundings) -> None:
    """Check the least memory that all ranks need, for weights and for the inputs of the whole prompt."""
    least = need.bytes(0, config.seq_len)
    if where.device == "cpu":
        ranks, total, of = config.world_size, memory_bytes(), "this machine has"
    else:
        ranks, total, of = 1, gpu_memory_bytes(), "its GPU has"
    if total and ranks * least > total:
        raise UserError(
            f"model={config.model.name} with seq_len={config.seq_len} and model.batch_size="
            f"{config.model.batch_size} needs at least {least / GIB:.3g} GiB per rank for weights and inputs"
            + (f", {ranks * least / GIB:.3g} GiB for {ranks} ranks" if ranks > 1 else "")
            + f", but {of} {total / GIB:.3g} GiB; use a smaller model, a shorter prompt or fewer ranks"
        )


def _check_limits(config: Config, need: MemoryNeed) -> None:
    """Raise UserError if the prompt's tokens do not fit into the memory that the weights leave.

    The memory per rank is the setting `memory_limit_gib`.
    """
    limit = config.memory_limit_gib
    if limit is None:
        return
    limits = limit if isinstance(limit, list) else [limit] * config.world_size
    max_tokens = sum(need.max_tokens(limit * GIB, config.seq_len) for limit in limits)
    if max_tokens < config.seq_len:
        raise UserError(
            f"memory_limit_gib={limit} holds {max_tokens} of seq_len={config.seq_len} tokens (per rank "
            f"{need.bytes(0, config.seq_len) / GIB:.3g} GiB go to weights and inputs); raise the limit, or "
            "use a smaller model or a shorter prompt"
        )
