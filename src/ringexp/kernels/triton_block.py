"""The provider of kernel=triton, our own portable kernel: GQA by head index, any lengths, no index masks.

On a CUDA device the kernel is compiled. On CPU tensors it is interpreted, if TRITON_INTERPRET=1 was set
before triton was first imported; this is slow, and for tests. triton itself is imported at the first call.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from ringexp.kernels.arithmetic import LOG2E, ceil_div
from ringexp.kernels.contract import Kernel, check_block
from ringexp.kernels.requirements import AMPERE, capability, needs_capability
from ringexp.planning import BlockShape

MAX_HEAD_DIM = 256
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Tiles:
    """The query rows and keys of a tile, and the numbers of warps and load stages that work on it."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# Tiles by padded head_dim; the smallest entry that fits counts. Compilation shows at most a few bytes of
# spills. One entry serves all lengths, so no length needs tuning of its own.
_HOPPER_16BIT = {64: Tiles(128, 128, 8, 3), 128: Tiles(128, 128, 8, 2), 256: Tiles(128, 64, 8, 2)}
_OTHER_16BIT = {64: Tiles(128, 64, 4, 3), 128: Tiles(128, 64, 8, 2), 256: Tiles(64, 32, 8, 2)}
_FLOAT32 = {64: Tiles(64, 32, 8, 2), 128: Tiles(32, 16, 8, 2), 256: Tiles(32, 16, 8, 2)}
_INTERPRETED = Tiles(32, 16, 1, 1)


def why_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Check head_dim, the device and the triton package."""
    if head_dim > MAX_HEAD_DIM:
        return f"head_dim <= {MAX_HEAD_DIM}, but head_dim={head_dim}"
    return why_triton_cannot_run(device)


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Return the portable Triton kernel."""
    return Kernel("triton", block)


def block(q: Tensor, k: Tensor, v: Tensor, shape: BlockShape, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """Compute one block as in `contract`: float16, bfloat16 or float32, head_dim <= 256.

    out is [B, L, H, D] contiguous in memory. float32 products are exact float32 (no TF32).
    """
    check_block(q, k, v, shape, softmax_scale)
    kernel = _kernel()
    interpreted = not q.is_cuda
    dtype = q.dtype
    if interpreted and dtype == torch.bfloat16:  # the interpreter multiplies bfloat16 bit patterns
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = (_with_small_rows(x) for x in (q, k, v))
    batch, num_heads, q_len, head_dim = q.shape
    num_kv_heads, kv_len = k.shape[1:3]
    out = q.new_empty(batch, q_len, num_heads, head_dim).transpose(1, 2)
    lse = q.new_empty(batch, num_heads, q_len, dtype=torch.float32)
    block_d = padded_head_dim(head_dim)
    tiles = _INTERPRETED if interpreted else choose_tiles(block_d, q.dtype, capability(q.device))
    grid = (ceil_div(q_len, tiles.block_m) * num_heads * batch,)
    with torch.cuda.device_of(q):
        kernel.attention_block[grid](
            q,
            k,
            v,
            out,
            lse,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            num_heads,
            num_heads // num_kv_heads,
            q_len,
            kv_len,
            softmax_scale * LOG2E,
            CAUSAL=shape is BlockShape.CAUSAL,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            PRECISION="ieee",
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            enable_fp_fusion=True,
        )
    return out.to(dtype), lse


def available(device: torch.device | str) -> bool:
    """Tell whether our Triton kernels can run on tensors of this device, here and now."""
    return why_triton_cannot_run(torch.device(device)) is None


def why_triton_cannot_run(device: torch.device) -> str | None:
    """Return what our Triton kernels lack on a device, as the end of a sentence "needs ...", or None."""
    if importlib.util.find_spec("triton") is None:
        return "the triton package, which is not installed"
    if device.type == "cuda":
        if _interpreting():
            return "to be compiled on CUDA, but TRITON_INTERPRET=1 is set; unset it"
        return needs_capability(device, AMPERE)
    if device.type != "cpu" or not _interpreting():
        return f"CUDA, but device={device.type} (or, for tests on the CPU, TRITON_INTERPRET=1 from the start)"
    triton, numpy = (_version(name) for name in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        return "triton >= 3.7 or numpy < 2.4 to be interpreted on the CPU"
    return None


def padded_head_dim(head_dim: int) -> int:
    """Return the width of the tiles: head_dim rounded up to a power of two, at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def choose_tiles(block_d: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    """Return the tiles for a padded head_dim, a dtype and a compute capability.

    They fit the GPU's shared memory: 227 KiB on Hopper and datacentre Blackwell (9.x, 10.x), 99 KiB
    elsewhere.
    """
    if dtype == torch.float32:
        table = _FLOAT32
    else:
        table = _HOPPER_16BIT if capability[0] in (9, 10) else _OTHER_16BIT
    return next(tiles for width, tiles in table.items() if block_d <= width)


def _kernel() -> ModuleType:
    from ringexp.kernels import triton_kernel

    return triton_kernel


def _interpreting() -> bool:
    """Tell whether triton interprets its kernels, which is fixed when triton is first imported."""
    if "triton" not in sys.modules:
        return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
    import triton

    jitted = (triton.language.max, _kernel().attention_block)  # triton's own, and ours
    return not any(isinstance(function, triton.JITFunction) for function in jitted)


def _with_small_rows(x: Tensor) -> Tensor:
    """Return x, or a contiguous copy if offsets within a tile of x might not fit 32 bits."""
    return x if x.stride(2) < 1 << 23 else x.contiguous()


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])
