"""Merging the partial results of blocks over different keys into one exact attention result.

For each query row with results (out_a, lse_a) and (out_b, lse_b) over disjoint keys:

    w   = sigmoid(lse_b - lse_a)          the share of b in the joint softmax denominator
    out = out_a + w * (out_b - out_a)
    lse = log(exp(lse_a) + exp(lse_b))

The online-softmax identity (Milakov and Gimelshein, 2018), in the sigmoid form used by ring attention codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ringexp.kernels.providers import Kernel

_ALL = slice(None)


class OnlineSoftmax:
    """The running result for one span of queries, in any order of blocks.

    The accumulator is float32, [B, L, H, D] contiguous. A first block that covers all rows is adopted as it
    is: no zeros are written, and if it stays alone, `output` returns it unrounded. The last of `num_blocks`
    merges, if that is told, goes straight to `dtype`. Tensors given to `merge` are never written to. No
    method waits for the device.
    """

    def __init__(
        self,
        batch: int,
        num_heads: int,
        q_len: int,
        head_dim: int,
        device: torch.device | str,
        *,
        num_blocks: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._shape = (batch, q_len, num_heads, head_dim)
        self._device = torch.device(device)
        self._num_blocks, self._dtype = num_blocks, dtype
        self._blocks_left = num_blocks
        self._out: Tensor | None = None  # [B, L, H, D]
        self._lse: Tensor | None = None  # [B, H, L] float32
        self._adopted = False  # the tensors above are the caller's: read only, any dtype

    def merge(self, out: Tensor, lse: Tensor, rows: slice = _ALL) -> None:
        """Add the result of one block over keys that were not merged into these rows before.

        Args:
            out: [B, H, rows, D], any floating dtype.
            lse: [B, H, rows] float32, natural log; finite, as no row of a block is fully masked.
            rows: which query rows the block covers, step 1.
        """
        batch, q_len, num_heads, head_dim = self._shape
        start, stop, step = rows.indices(q_len)
        assert step == 1, rows
        assert out.shape == (batch, num_heads, stop - start, head_dim), (rows, out.shape)
        assert lse.shape == out.shape[:3], (lse.shape, out.shape)
        assert lse.dtype == torch.float32, lse.dtype
        assert self._blocks_left is None or self._blocks_left > 0, "more blocks than were told"
        if self._blocks_left is not None:
            self._blocks_left -= 1
        new_out = out.transpose(1, 2)
        if self._out is None and stop - start == q_len:
            self._out, self._lse, self._adopted = new_out, lse, True
            return
        old = self._old()
        merged = self._target(old)
        if self._device.type == "cuda":
            from ringexp.kernels.triton_merge import merge_rows

            merge_rows(old, (new_out, lse), start, stop, merged)
        else:
            _merge_rows(old, (new_out, lse), start, stop, merged)
        self._out, self._lse = merged
        self._adopted = False

    def attend(
        self,
        kernel: Kernel,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool,
        softmax_scale: float,
        rows: slice = _ALL,
    ) -> None:
        """Compute one block, as in `contract`, and merge it; q holds the query rows `rows` alone.

        A kernel with `block_into` merges what it computes before it is rounded; the result is then as exact
        as a single block's, however many there are.
        """
        if kernel.block_into is None or self._num_blocks == 1:
            self.merge(*kernel.block(q, k, v, causal, softmax_scale), rows)
            return
        fresh = self._out is None and q.shape[2] == self._shape[1]
        if fresh:
            self._out = torch.empty(self._shape, dtype=torch.float32, device=self._device)
            self._lse = self._out.new_empty(self._shape[0], self._shape[2], self._shape[1])
        out, lse = self._old()
        assert not self._adopted, "a kernel either merges every block or none"
        kernel.block_into(q, k, v, causal, softmax_scale, out[:, rows], lse[:, :, rows], fresh)

    def output(self, dtype: torch.dtype) -> Tensor:
        """The merged result, [B, L, H, D] contiguous in dtype; rows never merged are 0.

        It may share memory with the accumulator or with an adopted block.
        """
        return self._old()[0].to(dtype).contiguous()

    @property
    def lse(self) -> Tensor:
        """The merged log-sum-exp, [B, H, L] float32; rows never merged are -inf."""
        assert self._lse is not None, "nothing was merged"
        return self._lse

    def _old(self) -> tuple[Tensor, Tensor]:
        """What was merged so far; nothing is out 0 and lse -inf."""
        if self._out is None or self._lse is None:
            batch, q_len, num_heads, _ = self._shape
            self._out = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
            self._lse = torch.full((batch, num_heads, q_len), float("-inf"), device=self._device)
        return self._out, self._lse

    def _target(self, old: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Where the next merge goes: into the accumulator, made now if there is none, or the final output."""
        dtype = self._dtype if self._blocks_left == 0 else torch.float32
        if not self._adopted and dtype == torch.float32:
            return old
        return old[0].new_empty(self._shape, dtype=dtype), torch.empty_like(
            old[1], memory_format=torch.contiguous_format
        )


def _merge_rows(
    old: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    start: int,
    stop: int,
    merged: tuple[Tensor, Tensor],
) -> None:
    """As `triton_merge.merge_rows`, by PyTorch's operators."""
    (old_out, old_lse), (new_out, new_lse), (out, lse) = old, new, merged
    rows = slice(start, stop)
    if out is not old_out:
        out.copy_(old_out)
        lse.copy_(old_lse)
    row_lse = old_lse[:, :, rows]
    weight = torch.sigmoid(new_lse - row_lse).transpose(1, 2).unsqueeze(3)
    out[:, rows] = old_out[:, rows].float().lerp(new_out.float(), weight)
    torch.logaddexp(row_lse, new_lse, out=lse[:, :, rows])
