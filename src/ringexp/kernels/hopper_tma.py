"""Prepare tensors for TMA, the engine of Hopper GPUs that copies tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ringexp.kernels.contract import Remote

_ALIGNMENT_BYTES = 16  # of every address and stride


def fits(x: Tensor) -> bool:
    """Tell whether TMA can load a [B, H, L, D] tensor: D contiguous, the rest on 16-byte boundaries."""
    return (
        x.data_ptr() % _ALIGNMENT_BYTES == 0
        and x.stride(3) == 1
        and all(
            size == 1 or (stride > 0 and stride * x.element_size() % _ALIGNMENT_BYTES == 0)
            for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)
        )
    )


def fitting(x: Tensor) -> Tensor:
    """Return x, or a copy of x that TMA can load."""
    return x if fits(x) else x.clone(memory_format=torch.contiguous_format)


def descriptor(x: Tensor | Remote, rows: int) -> Any:
    """Return the TMA descriptor of x [B, H, L, D] for tiles of `rows` rows per head; rows beyond L are 0."""
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    block_shape = [1, 1, rows, x.shape[3]]
    element = gl.bfloat16 if x.dtype == torch.bfloat16 else gl.float16
    shared_layout: Any = gl.NVMMASharedLayout
    layout = shared_layout.get_default_for(block_shape, element)
    # The stride of a dimension of size 1 has no meaning and can be any number, but TMA checks it.
    strides = [x.shape[3] if n == 1 else stride for n, stride in zip(x.shape[:3], x.stride(), strict=False)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], block_shape, layout)
