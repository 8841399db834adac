"""Pick the kernel that computes blocks: by its name in `choices.KERNELS`, or for kernel=auto.

The module of a kernel is its provider, see `contract.Provider`. It is imported when it is first needed.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ringexp.choices import AUTO, KERNELS, KernelSpec
from ringexp.errors import UserError
from ringexp.kernels.contract import Kernel, Provider


def get_kernel(name: str, device: torch.device | str, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Return the kernel called `name` for blocks on `device` with this dtype and head_dim.

    The name `auto` stands for the first of `candidates`; nothing is measured here. Raises UserError for an
    unknown name and for a kernel that cannot run there.
    """
    device = torch.device(device)
    KERNELS.check(name)
    spec = KERNELS[candidates(device, dtype, head_dim)[0] if name == AUTO else name]
    lacks = why_unavailable(spec, device, dtype, head_dim)
    if lacks:
        alternatives = " or ".join(f"kernel={alternative}" for alternative in spec.alternatives)
        raise UserError(f"kernel={spec.name} needs {lacks}; use {alternatives}")
    return replace(_provider(spec).kernel(device, dtype, head_dim), name=spec.name)


def candidates(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Return the kernels from which kernel=auto picks, the one expected to be fastest first.

    The list is never empty. Where no kernel can run it has the least demanding one, whose error says why.
    """
    device = torch.device(device)
    ranked = [(spec.auto_rank, spec) for spec in KERNELS if spec.auto_rank is not None]
    specs = [spec for _, spec in sorted(ranked, key=lambda pair: pair[0])]
    usable = [spec.name for spec in specs if why_unavailable(spec, device, dtype, head_dim) is None]
    return usable or [specs[-1].name]


def why_unavailable(spec: KernelSpec, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return what a kernel lacks there, as the end of a sentence "needs ..."; None if it can run."""
    stated = spec.why_unsuitable(device.type, str(dtype).removeprefix("torch."))
    return stated or _provider(spec).why_unavailable(device, dtype, head_dim) or spec.why_not_installed()


def _provider(spec: KernelSpec) -> Provider:
    return spec.load()
