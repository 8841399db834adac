"""Which kernel computes the blocks: names, what each can run, and what `auto` picks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ringexp.errors import UserError
from ringexp.kernels import aten, oracle, triton_block
from ringexp.kernels.contract import Block

KERNEL_NAMES = ("auto", "reference", "sdpa", "cudnn", "triton")
HALF = (torch.float16, torch.bfloat16)
CUDNN_MAX_HEAD_DIM = 128
FLASH_MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Kernel:
    """A block kernel and its name; `block` is as in `contract`."""

    name: str
    block: Block


def get_kernel(name: str, device: torch.device | str, dtype: torch.dtype, head_dim: int) -> Kernel:
    """The kernel `name` for tensors of this device, dtype and head_dim; `auto` picks one.

    Raises UserError, naming what does not fit and what to use instead.
    """
    device = torch.device(device)
    if name == "auto":
        name = "sdpa" if _why_not_cudnn(device, dtype, head_dim) else "cudnn"
    if name == "reference":
        return Kernel(name, oracle.block)
    if name == "sdpa":
        return Kernel(name, _sdpa(device, dtype, head_dim))
    if name == "cudnn":
        if reason := _why_not_cudnn(device, dtype, head_dim):
            raise UserError(f"kernel=cudnn needs {reason}; use kernel=sdpa or kernel=auto")
        return Kernel(name, aten.cudnn_cuda)
    if name == "triton":
        if reason := triton_block.why_unavailable(device):
            raise UserError(f"kernel=triton needs {reason}; use kernel=sdpa or kernel=auto")
        if head_dim > triton_block.MAX_HEAD_DIM or dtype not in triton_block.DTYPES:
            raise UserError(
                f"kernel=triton needs head_dim <= {triton_block.MAX_HEAD_DIM} and float32, float16 or bfloat16, "
                f"got head_dim={head_dim} {dtype}; use kernel=sdpa"
            )
        return Kernel(name, triton_block.block)
    raise UserError(f"kernel={name} is unknown; choose one of {', '.join(KERNEL_NAMES)}")


def _sdpa(device: torch.device, dtype: torch.dtype, head_dim: int) -> Block:
    if device.type == "cpu":
        return aten.flash_cpu
    flash = dtype in HALF and head_dim <= FLASH_MAX_HEAD_DIM and torch.cuda.get_device_capability(device) >= (8, 0)
    return aten.flash_cuda if flash else aten.efficient_cuda


def _why_not_cudnn(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """What cuDNN attention lacks here, as the end of a sentence "needs ..."; None if it can run."""
    if device.type != "cuda":
        return f"CUDA, but device={device.type}"
    if dtype not in HALF:
        return f"float16 or bfloat16, but the model's dtype is {str(dtype).removeprefix('torch.')}"
    if head_dim % 8 or head_dim > CUDNN_MAX_HEAD_DIM:
        return f"a head_dim that is a multiple of 8 up to {CUDNN_MAX_HEAD_DIM}, got {head_dim}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "compute capability >= 8.0"
    return None
