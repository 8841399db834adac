"""The provider of kernel=hopper, our own for H100 and H200: warp specialised, TMA loads, asynchronous wgmma.

It computes in float16 and bfloat16, with head_dim 64 and 128. `block_into` takes the keys of several blocks
per call. It keeps results in float32 and merges them into those of earlier blocks while it writes them. The
device code is in `hopper_kernel`, which `hopper_launch` imports at the first call.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from ringexp.kernels.contract import Accumulator, Kernel, KeySpan
from ringexp.kernels.hopper_launch import LIMITS, Result, launch
from ringexp.kernels.hopper_tma import fitting
from ringexp.kernels.requirements import HOPPER, capability, show
from ringexp.planning import BlockShape

HEAD_DIMS = (64, 128)
MIN_TRITON = (3, 6)


def why_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Check head_dim, the GPU and the version of triton."""
    if head_dim not in HEAD_DIMS:
        return f"head_dim 64 or 128, but head_dim={head_dim}"
    if capability(device) != HOPPER:
        return f"a Hopper GPU (compute capability 9.0), but this GPU has {show(capability(device))}"
    if importlib.util.find_spec("triton") is None:
        return "the triton package, which is not installed"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_TRITON:
        return f"triton >= {show(MIN_TRITON)}, but triton=={version}"
    return None


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Return our kernel for Hopper."""
    return Kernel("hopper", block, block_into, LIMITS)


def block(q: Tensor, k: Tensor, v: Tensor, shape: BlockShape, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """Compute one block as in `contract`; out is [B, L, H, D] contiguous in memory."""
    batch, num_heads, q_len, head_dim = q.shape
    out = q.new_empty(batch, q_len, num_heads, head_dim)
    lse = q.new_empty(batch, num_heads, q_len, dtype=torch.float32)
    launch(fitting(q), [KeySpan(fitting(k), fitting(v))], shape, softmax_scale, Result(out, lse))
    return out.transpose(1, 2), lse


def block_into(
    q: Tensor, spans: Sequence[KeySpan], shape: BlockShape, softmax_scale: float, accumulator: Accumulator
) -> None:
    """Compute blocks as in `contract`, and merge them into earlier results while they are written."""
    q, spans = fitting(q), [span._replace(k=fitting(span.k), v=fitting(span.v)) for span in spans]
    out, lse, fresh, final, done = accumulator
    if fresh and done == (0, q.shape[2]):
        result = Result(final, lse)
    else:
        result = Result(out, lse, merge=not fresh, final=final, done=done)
    launch(q, spans, shape, softmax_scale, result)
