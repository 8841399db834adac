"""Check what a kernel needs of a GPU. Each check returns the end of a sentence "needs ...", or None."""

from __future__ import annotations

import functools

import torch

AMPERE = (8, 0)
HOPPER = (9, 0)


def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU; without an index it is the current one."""
    return torch.cuda.get_device_capability(device) if device.index is None else _capability(device.index)


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def needs_capability(device: torch.device, minimum: tuple[int, int]) -> str | None:
    """Check that a GPU has at least this compute capability."""
    if capability(device) >= minimum:
        return None
    return f"compute capability >= {show(minimum)}, but this GPU has {show(capability(device))}"


def needs_head_dim(head_dim: int, multiple_of: int, limit: int) -> str | None:
    """Check that head_dim is a multiple of a number and within a limit that may depend on the GPU."""
    if head_dim % multiple_of == 0 and head_dim <= limit:
        return None
    return f"a head_dim that is a multiple of {multiple_of} and at most {limit} here, but head_dim={head_dim}"


def show(version: tuple[int, ...]) -> str:
    """Return a version such as (8, 0) as 8.0."""
    return ".".join(str(number) for number in version)
