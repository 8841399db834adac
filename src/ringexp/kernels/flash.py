"""FlashAttention-4's forward kernel, from the optional package flash-attn-4: ringexp[flash]."""

from __future__ import annotations

import importlib.metadata

import torch
from torch import Tensor

from ringexp.kernels.contract import check_block

DTYPES = (torch.float16, torch.bfloat16)
MIN_CAPABILITY = (8, 0)
_MAX_HEAD_DIM = {9: 256}  # by major compute capability; elsewhere 128


def block(q: Tensor, k: Tensor, v: Tensor, causal: bool, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """One block as in `contract`; KV heads are not expanded. It is compiled at a process's first call."""
    from flash_attn.cute import flash_attn_func  # pyright: ignore[reportMissingImports]

    check_block(q, k, v, causal, softmax_scale)
    q_blhd, k_blhd, v_blhd = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = flash_attn_func(
        q_blhd, k_blhd, v_blhd, softmax_scale=softmax_scale, causal=causal, return_lse=True
    )[:2]
    return out.transpose(1, 2), lse


def why_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """What `block` lacks there, as the end of a sentence "needs ..."; None if it can run."""
    if device.type != "cuda":
        return f"CUDA, but device={device.type}"
    if dtype not in DTYPES:
        return f"float16 or bfloat16, but dtype={str(dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return "compute capability >= 8.0, but this GPU has {}.{}".format(*capability)
    limit = _MAX_HEAD_DIM.get(capability[0], 128)
    if head_dim % 8 or head_dim > limit:
        return f"a head_dim that is a multiple of 8 and at most {limit} here, but head_dim={head_dim}"
    try:
        importlib.metadata.version("flash-attn-4")
    except importlib.metadata.PackageNotFoundError:
        return "the package flash-attn-4 (pip install 'ringexp[flash]')"
    return None
