"""Merging the partial results of blocks over different keys into one exact attention result.

For each query row with results (out_a, lse_a) and (out_b, lse_b) over disjoint keys:

    w   = sigmoid(lse_b - lse_a)          the share of b in the joint softmax denominator
    out = out_a + w * (out_b - out_a)
    lse = log(exp(lse_a) + exp(lse_b))

The online-softmax identity (Milakov and Gimelshein, 2018), in the sigmoid form used by ring attention codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ALL = slice(None)


class OnlineSoftmax:
    """The running result for one span of queries, in any order of blocks.

    The accumulator is float32, [B, L, H, D] contiguous. A first block that covers all rows is adopted as it
    is: no zeros are written, and if it stays alone, `output` returns it unrounded. Tensors given to `merge`
    are never written to. No method waits for the device.
    """

    def __init__(
        self, batch: int, num_heads: int, q_len: int, head_dim: int, device: torch.device | str
    ) -> None:
        self._shape = (batch, q_len, num_heads, head_dim)
        self._device = torch.device(device)
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
        new_out = out.transpose(1, 2)
        if self._out is None and stop - start == q_len:
            self._out, self._lse, self._adopted = new_out, lse, True
            return
        acc_out, acc_lse = self._own()
        row_out, row_lse = acc_out[:, start:stop], acc_lse[:, :, start:stop]
        weight = torch.sigmoid(lse - row_lse).transpose(1, 2).unsqueeze(3)
        row_out.lerp_(new_out.float(), weight)
        torch.logaddexp(row_lse, lse, out=row_lse)

    def output(self, dtype: torch.dtype) -> Tensor:
        """The merged result, [B, L, H, D] contiguous in dtype; rows never merged are 0.

        It may share memory with the accumulator or with an adopted block.
        """
        assert self._out is not None, "nothing was merged"
        return self._out.to(dtype).contiguous()

    @property
    def lse(self) -> Tensor:
        """The merged log-sum-exp, [B, H, L] float32; rows never merged are -inf."""
        assert self._lse is not None, "nothing was merged"
        return self._lse

    def _own(self) -> tuple[Tensor, Tensor]:
        """The accumulator as tensors of our own, written to in place from here on."""
        if self._out is None or self._lse is None:
            batch, q_len, num_heads, _ = self._shape
            self._out = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
            self._lse = torch.full((batch, num_heads, q_len), float("-inf"), device=self._device)
        elif self._adopted:
            self._out = self._out.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            self._lse = self._lse.clone(memory_format=torch.contiguous_format)
            self._adopted = False
        return self._out, self._lse
