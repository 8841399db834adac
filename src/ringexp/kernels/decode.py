"""Attention of one token over one rank's cache: the contract of decode kernels, and the choice of one.

    parts = kernel.attend(q, k, v, slots, softmax_scale)     # [parts, B, Hkv, group, D + 1] float32
    out = kernel.merge(parts, q.dtype)                       # [B, Hkv, group, D]

- q [B, Hkv, group, D]: the query heads of each KV head; k and v [B, capacity, Hkv, D], D contiguous.
- A part is the result over some of the slots: out, followed by its log-sum-exp. Over no slots out is 0 and
  the log-sum-exp -inf.
- merge(parts) keeps the log-sum-exp, [B, Hkv, group, D + 1], so that its result can be a part of another
  merge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ringexp.kernels import triton_block
from ringexp.kernels.contract import BlockFunction
from ringexp.kernels.providers import get_kernel
from ringexp.planning import BlockShape, runs


class Slots:
    """The filled slots of a rank's cache, known to the host and, in device memory, to kernels.

    Attributes:
        firsts: the first slot of each sequence that is not padding.
        filled: the number of filled slots.
        first_slots: `firsts` on the device, [B] int32.
        stop: `filled` on the device, [1] int32. A token attends to the slots from first_slots up to stop.
        next_slot: the slot for the next token's keys and values, on the device, [1] int64.
    """

    def __init__(self, firsts: Sequence[int], filled: int, device: torch.device) -> None:
        self.firsts, self.filled = list(firsts), filled
        self.first_slots = torch.tensor(self.firsts, dtype=torch.int32, device=device)
        self.stop = torch.tensor([filled], dtype=torch.int32, device=device)
        self.next_slot = torch.tensor([filled], device=device)

    def admit(self, keep: bool) -> None:
        """Give the next token the slot behind the filled ones.

        Args:
            keep: whether the token fills the slot. Otherwise the token after it gets the same slot.
        """
        self.next_slot.fill_(self.filled)  # the value is a kernel argument, so nothing is copied
        self.filled += keep
        self.stop.fill_(self.filled)


class Attend(Protocol):
    """Compute the parts of one token's attention. The shapes are at the top of this module."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, slots: Slots, softmax_scale: float) -> Tensor: ...


@dataclass(frozen=True)
class DecodeKernel:
    """A kernel for attention of one token over a cache.

    Attributes:
        attend: computes the parts.
        merge: merges parts into one.
        replayable: whether the kernel reads lengths from device memory. A CUDA graph of one step then serves
            other tokens, too.
    """

    attend: Attend
    merge: Callable[..., Tensor]
    replayable: bool


def get_decode_kernel(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> DecodeKernel:
    """Return the decode kernel for caches on `device` with this dtype and head_dim: Triton's if it runs."""
    device = torch.device(device)
    fits = dtype in triton_block.DTYPES and head_dim <= triton_block.MAX_HEAD_DIM
    if device.type == "cuda" and fits and triton_block.available(device):
        return split_over_keys()
    return by_blocks(get_kernel("sdpa", device, dtype, head_dim).block)


def split_over_keys() -> DecodeKernel:
    """Return the kernel of `triton_decode`."""
    from ringexp.kernels import triton_decode

    def attend(q: Tensor, k: Tensor, v: Tensor, slots: Slots, softmax_scale: float) -> Tensor:
        return triton_decode.attend(q, k, v, slots.first_slots, slots.stop, softmax_scale)

    return DecodeKernel(attend, triton_decode.merge, replayable=True)


def by_blocks(block: BlockFunction) -> DecodeKernel:
    """Return a decode kernel that calls a block kernel on the slots that the host knows to be filled."""

    def attend(q: Tensor, k: Tensor, v: Tensor, slots: Slots, softmax_scale: float) -> Tensor:
        parts = q.new_zeros((1, *q.shape[:3], q.shape[3] + 1), dtype=torch.float32)
        parts[..., -1] = float("-inf")
        for sequences, first in runs(slots.firsts):
            if first < slots.filled:
                # The token sees all keys, so the query heads of one KV head can be the rows of a full block.
                keys, values = (x[sequences, first : slots.filled].transpose(1, 2) for x in (k, v))
                out, lse = block(q[sequences], keys, values, BlockShape.FULL, softmax_scale)
                parts[0, sequences, ..., :-1] = out
                parts[0, sequences, ..., -1] = lse
        return parts

    return DecodeKernel(attend, merge, replayable=False)


def merge(parts: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Merge `parts` as `triton_decode.merge` does, with PyTorch's operators."""
    if len(parts) > 1:
        out, lse = parts[..., :-1], parts[..., -1:]
        high = lse.amax(0)
        level = high.masked_fill(high.isneginf(), 0.0)  # where no part has a score: exp(-inf) is 0
        weights = (lse - level).exp()
        total = weights.sum(0)
        divisor = total.masked_fill(total == 0, 1.0)
        merged = (weights * out).sum(0) / divisor, level + total.log()
        parts = torch.cat(merged, dim=-1).unsqueeze(0)
    return parts[0] if dtype is None else parts[0, ..., :-1].to(dtype).contiguous()
