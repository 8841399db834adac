"""Which kernel runs a block: by name, checked against the device, the dtype and the head dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ringexp.config import KERNELS as KERNEL_NAMES
from ringexp.errors import UserError
from ringexp.kernels import aten, flash, hopper_block, oracle, triton_block
from ringexp.kernels.contract import Block, BlockInto, FusedLimits

_HALF = (torch.float16, torch.bfloat16)
_FAST = (*_HALF, torch.float32)
_AMPERE = (8, 0)
_MAX_FLASH_HEAD_DIM = 256
_CUDNN_9_10 = 91000


@dataclass(frozen=True)
class Kernel:
    """A block kernel that fits one device, dtype and head_dim; block(q, k, v, causal, softmax_scale)."""

    name: str  # never "auto": what was chosen
    block: Block
    block_into: BlockInto | None = None
    fused_limits: FusedLimits | None = None  # what block_into takes at once; None: one block


def get_kernel(name: str, device: torch.device | str, dtype: torch.dtype, head_dim: int) -> Kernel:
    """The kernel called `name`, for blocks on `device` with this dtype and head_dim.

    auto is the first of `candidates`, not measured. Raises UserError for an unknown name and for a kernel
    that cannot run there.
    """
    if name not in KERNEL_NAMES:
        raise UserError(f"kernel={name} is unknown; choose one of {', '.join(KERNEL_NAMES)}")
    device = torch.device(device)
    if name == "auto":
        name = candidates(device, dtype, head_dim)[0]
    lacks = _LACKS[name](device, dtype, head_dim)
    if lacks:
        others = "kernel=reference" if name == "sdpa" else "kernel=sdpa or kernel=auto"
        raise UserError(f"kernel={name} needs {lacks}; use {others}")
    if name == "triton" and hopper_block.why_unavailable(device, dtype, head_dim) is None:
        return Kernel(name, hopper_block.block, hopper_block.block_into, hopper_block.JOINT)
    return Kernel(name, _block_of(name, device, dtype, head_dim))


def candidates(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> list[str]:
    """The kernels that kernel=auto chooses from there, by what is to be expected of them; one at least."""
    device = torch.device(device)
    if device.type != "cuda":
        return ["sdpa"]
    fitting = [name for name in ("flash", "cudnn") if not _LACKS[name](device, dtype, head_dim)]
    if hopper_block.why_unavailable(device, dtype, head_dim) is None:
        fitting.insert(fitting.index("cudnn") if "cudnn" in fitting else len(fitting), "triton")
    return [*fitting, "sdpa"]


def _block_of(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Block:
    if name == "reference":
        return oracle.block
    if name == "triton":
        return triton_block.block
    if name == "cudnn":
        return aten.cudnn_cuda
    if name == "flash":
        return flash.block
    if device.type == "cpu":
        return aten.flash_cpu
    flash_fits = dtype in _HALF and head_dim <= _MAX_FLASH_HEAD_DIM and _capability(device) >= _AMPERE
    return aten.flash_cuda if flash_fits else aten.efficient_cuda


# What a kernel lacks, as the end of a sentence "needs ..."; None if it can run.


def _reference_lacks(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return None if dtype.is_floating_point else f"a floating dtype, but dtype={_short(dtype)}"


def _sdpa_lacks(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"the CPU or CUDA, but device={device.type}"
    if dtype not in _FAST:
        return f"float16, bfloat16 or float32, but dtype={_short(dtype)}"
    if device.type == "cuda" and dtype == torch.bfloat16 and _capability(device) < _AMPERE:
        return f"compute capability >= 8.0 for bfloat16, but this GPU has {_show(_capability(device))}"
    return None


def _cudnn_lacks(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type != "cuda":
        return f"CUDA, but device={device.type}"
    if dtype not in _HALF:
        return f"float16 or bfloat16, but dtype={_short(dtype)}"
    capability, version = _capability(device), torch.backends.cudnn.version() or 0
    if capability < _AMPERE:
        return f"compute capability >= 8.0, but this GPU has {_show(capability)}"
    if version < 90000:
        return f"cuDNN >= 9.0, but this PyTorch has {version or 'none'}"
    # PyTorch's own limits: 256 on Hopper alone, 128 elsewhere.
    limit = 256 if capability == (9, 0) and version >= _CUDNN_9_10 else 128
    if head_dim % 8 or head_dim > limit:
        return f"a head_dim that is a multiple of 8 and at most {limit} here, but head_dim={head_dim}"
    return None


def _triton_lacks(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if dtype not in triton_block.DTYPES:
        return f"float16, bfloat16 or float32, but dtype={_short(dtype)}"
    if head_dim > triton_block.MAX_HEAD_DIM:
        return f"head_dim <= {triton_block.MAX_HEAD_DIM}, but head_dim={head_dim}"
    return triton_block.why_unavailable(device)


_LACKS = {
    "reference": _reference_lacks,
    "sdpa": _sdpa_lacks,
    "cudnn": _cudnn_lacks,
    "triton": _triton_lacks,
    "flash": flash.why_unavailable,
}


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _show(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)
