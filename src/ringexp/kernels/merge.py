"""Merging the partial results of blocks over different keys into one exact attention result.

For each query row with results (out_a, lse_a) and (out_b, lse_b) over disjoint keys:

    w   = sigmoid(lse_b - lse_a)          the share of b in the joint softmax denominator
    out = out_a + w * (out_b - out_a)
    lse = log(exp(lse_a) + exp(lse_b))

A row whose scores are all -inf on one side has weight 0 there. On both sides it stays out 0 and lse -inf.
The online-softmax identity (Milakov and Gimelshein, 2018), in the sigmoid form used by ring attention codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ringexp.kernels.contract import Accumulator, Kernel, KeySpan, Rows
from ringexp.planning import BlockShape

_ALL = slice(None)


class OnlineSoftmax:
    """The running result for one span of queries, in any order of blocks.

    The accumulator is float32, [B, L, H, D] contiguous. A first block that covers all rows is adopted as it
    is: no zeros are written, and if it stays alone, `output` returns it unrounded. blocks: the rows of every
    block to come, in order; if they are told, what is merged last goes straight to `dtype`. Tensors given to
    `merge` are never written to. No method waits for the device.
    """

    def __init__(
        self,
        batch: int,
        num_heads: int,
        q_len: int,
        head_dim: int,
        device: torch.device | str,
        *,
        blocks: Sequence[Rows] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._shape = (batch, q_len, num_heads, head_dim)
        self._device = torch.device(device)
        self._blocks, self._dtype = blocks, dtype
        self._attended = 0
        self._done, self._undone = rows_done(blocks or (), q_len)
        self._final: Tensor | None = None  # [B, L, H, D] in dtype: the rows that are done
        self._out: Tensor | None = None  # [B, L, H, D]
        self._lse: Tensor | None = None  # [B, H, L] float32
        self._adopted = False  # the tensors above are the caller's: read only, any dtype

    def merge(self, out: Tensor, lse: Tensor, rows: slice = _ALL) -> None:
        """Add the result of one block over keys that were not merged into these rows before.

        Args:
            out: [B, H, rows, D], any floating dtype.
            lse: [B, H, rows] float32, natural log; see `contract` for rows whose scores are all -inf.
            rows: which query rows the block covers, step 1.
        """
        batch, q_len, num_heads, head_dim = self._shape
        start, stop, step = rows.indices(q_len)
        assert step == 1, rows
        assert out.shape == (batch, num_heads, stop - start, head_dim), (rows, out.shape)
        assert lse.shape == out.shape[:3], (lse.shape, out.shape)
        assert lse.dtype == torch.float32, lse.dtype
        assert self._blocks is None or self._attended < len(self._blocks), "more blocks than were told"
        self._attended += 1
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
        spans: Sequence[KeySpan],
        shape: BlockShape,
        softmax_scale: float,
        rows: slice = _ALL,
    ) -> None:
        """Compute a block, or those that the kernel joins, and merge it; q holds the query rows `rows` alone.

        spans, shape: as for `block_into` in `contract`. A kernel that has it merges what it computes before
        it is rounded; the result is then as exact as a single block's, however many there are. Needs `blocks`
        for that.
        """
        if kernel.block_into is None or self._blocks is None:
            (span,) = spans
            self.merge(*kernel.block(q, span.k, span.v, shape, softmax_scale), rows)
            return
        start, stop, _ = rows.indices(self._shape[1])
        assert self._blocks[self._attended] == (start, stop), (self._blocks, self._attended, rows)
        first, last = self._done[self._attended]
        if self._final is None:
            self._final = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        fresh = self._out is None and stop - start == self._shape[1]
        if fresh:
            all_done = last - first == self._shape[1]
            self._out = self._final if all_done else self._final.new_empty(self._shape, dtype=torch.float32)
            lse_shape = self._shape[0], self._shape[2], self._shape[1]
            self._lse = self._final.new_empty(lse_shape, dtype=torch.float32)
        out, lse = self._old()
        assert not self._adopted, "a kernel either merges every block or none"
        done = first - start, last - start
        accumulator = Accumulator(out[:, rows], lse[:, :, rows], fresh, self._final[:, rows], done)
        kernel.block_into(q, spans, shape, softmax_scale, accumulator)
        self._attended += 1

    def output(self, dtype: torch.dtype) -> Tensor:
        """The merged result, [B, L, H, D] contiguous in dtype; rows never merged are 0.

        It may share memory with the accumulator or with an adopted block.
        """
        if self._final is None:
            return self._old()[0].to(dtype).contiguous()
        for start, stop in self._undone:
            self._final[:, start:stop] = self._old()[0][:, start:stop]
        return self._final.to(dtype)

    @property
    def lse(self) -> Tensor:
        """The merged log-sum-exp, [B, H, L] float32; rows never merged are -inf."""
        assert self._lse is not None, "nothing was merged"
        return self._lse

    def _old(self) -> tuple[Tensor, Tensor]:
        """Return the result so far; if nothing was merged it is out 0 and lse -inf."""
        if self._out is None or self._lse is None:
            batch, q_len, num_heads, _ = self._shape
            self._out = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
            self._lse = torch.full((batch, num_heads, q_len), float("-inf"), device=self._device)
        return self._out, self._lse

    def _target(self, old: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the tensors that the next merge writes: the accumulator, or the final output."""
        is_last = self._blocks is not None and self._attended == len(self._blocks)
        dtype = self._dtype if is_last else torch.float32
        if not self._adopted and dtype == torch.float32:
            return old
        return old[0].new_empty(self._shape, dtype=dtype), torch.empty_like(
            old[1], memory_format=torch.contiguous_format
        )


def rows_done(blocks: Sequence[Rows], q_len: int) -> tuple[list[Rows], list[Rows]]:
    """For each block the rows that no later one covers, if those lie together; and the rows left over.

    Of several runs of such rows one counts; a block that has none gets (start, start).
    """
    covered: list[Rows] = []
    done: list[Rows] = []
    for rows in reversed(blocks):
        done.append(next(_without([rows], covered), (rows[0], rows[0])))
        covered.append(rows)
    return done[::-1], list(_without([(0, q_len)], done))


def _without(runs: Iterable[Rows], covered: Sequence[Rows]) -> Iterator[Rows]:
    """The runs of rows, without those that are covered."""
    for start, stop in runs:
        for first, last in sorted(covered):
            if first < last and start < last and first < stop:
                if start < first:
                    yield start, first
                start = last
        if start < stop:
            yield start, stop


def _merge_rows(
    old: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    start: int,
    stop: int,
    merged: tuple[Tensor, Tensor],
) -> None:
    """Do the same as `triton_merge.merge_rows` by PyTorch's operators."""
    (old_out, old_lse), (new_out, new_lse), (out, lse) = old, new, merged
    rows = slice(start, stop)
    if out is not old_out:
        out.copy_(old_out)
        lse.copy_(old_lse)
    row_lse = old_lse[:, :, rows]
    share = torch.sigmoid(new_lse - row_lse).masked_fill(new_lse.isneginf(), 0.0)  # -inf - -inf is NaN
    weight = share.transpose(1, 2).unsqueeze(3)
    out[:, rows] = old_out[:, rows].float().lerp(new_out.float(), weight)
    torch.logaddexp(row_lse, new_lse, out=lse[:, :, rows])
