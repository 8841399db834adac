"""Attention of one token over the cache of one rank: what decode kernels agree to, and which one runs where.

    parts = kernel.attend(q, k, v, slots, softmax_scale)     # [parts, B, Hkv, group, D + 1] float32
    out = kernel.merge(parts, q.dtype)                       # [B, Hkv, group, D]

- q [B, Hkv, group, D]: the query heads of each KV head; k and v [B, capacity, Hkv, D], D contiguous.
- A part is the result over some of the slots: out, and behind it its log-sum-exp. Without slots out is 0 and
  the log-sum-exp -inf.
- merge(parts) keeps the log-sum-exp, [B, Hkv, group, D + 1], so that it can be a part of another merge.
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
    """Which slots of a rank's cache are filled: for the host, and in device memory for kernels.

    firsts: of each sequence the first slot that is no padding. filled: how many there are. On the device:
    `first_slots` [B] and `stop` [1], int32, between which a token attends, and `next_slot` [1], int64, where
    it is put.
    """

    def __init__(self, firsts: Sequence[int], filled: int, device: torch.device) -> None:
        self.firsts, self.filled = list(firsts), filled
        self.first_slots = torch.tensor(self.firsts, dtype=torch.int32, device=device)
        self.stop = torch.tensor([filled], dtype=torch.int32, device=device)
        self.next_slot = torch.tensor([filled], device=device)

    def admit(self, keep: bool) -> None:
        """The next token goes behind the filled slots and fills one, or the one after it takes its place."""
        self.next_slot.fill_(self.filled)  # a value in a kernel's arguments: nothing is copied, nobody waits
        self.filled += keep
        self.stop.fill_(self.filled)


class Attend(Protocol):
    """The function that computes the parts of one token's attention; the module's text has the shapes."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, slots: Slots, softmax_scale: float) -> Tensor: ...


@dataclass(frozen=True)
class DecodeKernel:
    """replayable: lengths are read from the device, so a CUDA graph of a step serves other tokens too."""

    attend: Attend
    merge: Callable[..., Tensor]
    replayable: bool


def get_decode_kernel(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> DecodeKernel:
    """The decode kernel for caches on `device` with this dtype and head_dim: Triton's where it can run."""
    device = torch.device(device)
    fits = dtype in triton_block.DTYPES and head_dim <= triton_block.MAX_HEAD_DIM
    if device.type == "cuda" and fits and triton_block.available(device):
        return split_over_keys()
    return by_blocks(get_kernel("sdpa", device, dtype, head_dim).block)


def split_over_keys() -> DecodeKernel:
    """The kernel in `triton_decode`."""
    from ringexp.kernels import triton_decode

    def attend(q: Tensor, k: Tensor, v: Tensor, slots: Slots, softmax_scale: float) -> Tensor:
        return triton_decode.attend(q, k, v, slots.first_slots, slots.stop, softmax_scale)

    return DecodeKernel(attend, triton_decode.merge, replayable=True)


def by_blocks(block: BlockFunction) -> DecodeKernel:
    """A block kernel over the slots that the host knows to be filled: all in one part."""

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
