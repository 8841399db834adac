"""The device of this rank: its name in calibration rows, waiting for it, the peak of its memory."""

from __future__ import annotations

import platform
import resource

import torch

from ringexp.machine import cpu_name


def hardware_name(device: torch.device, rank: int, by_itself: bool) -> str:
    """Return the name that calibration rows give a rank's device.

    Args:
        device: the rank's device.
        rank: the rank's number, which tells the CPU ranks of a machine apart.
        by_itself: name this very device; without it, devices of one kind share a name and their rows.
    """
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} {properties.uuid}" if by_itself else properties.name
    kind = f"{cpu_name()} x{torch.get_num_threads()}"
    return f"{kind} {platform.node()} rank {rank}" if by_itself else kind


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew to record the peak of the CUDA allocator; on CPU there is nothing to reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of the CUDA allocator since the reset; on CPU the process's peak resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
