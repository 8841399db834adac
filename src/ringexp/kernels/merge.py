"""Merge the partial results of blocks over different keys into one exact attention result.

For each query row with results (out_a, lse_a) and (out_b, lse_b) over disjoint keys:

    w   = sigmoid(lse_b - lse_a)          the share of b in the joint softmax denominator
    out = out_a + w * (out_b - out_a)
    lse = log(exp(lse_a) + exp(lse_b))

If all scores of a row are -inf on one side, that side has weight 0. If they are -inf on both sides, the row
keeps out 0 and lse -inf.
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
    """The running attention result of one span of queries. Blocks may come in any order.

    The accumulator is float32, [B, L, H, D] contiguous. If the first block covers all rows, its tensors are
    used as they are: no zeros are written, and if no further block comes, `output` returns them unrounded.
    Tensors given to `merge` are never written to. No method waits for the device.

    Args:
        batch: sequences, B.
        num_heads: query heads, H.
        q_len: query rows, L.
        head_dim: elements per head, D.
        device: the device of all tensors.
        blocks: the rows of every block to come, in order; None if they are not known. With them the last
            merge writes the output in `dtype` directly.
        dtype: the type of the output.
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
            rows: the query rows that the block covers, step 1.
        """
        batch, q_len, num_heads, head_dim = self._shape
        start, stop, step = rows.indices(q_len)
        assert step == 1, rows
        assert out.shape == (batch, num_heads, stop - start, head_dim), (rows, out.shape)
        assert lse.shape == out.shape[:3], (lse.shape, out.shape)
        assert lse.dtype == torch.float32, lse.dtype
        assert self._blocks is None or self._attended < len(self._blocks), "more blocks than `blocks` has"
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
        """Compute one block, or several that the kernel joins, and merge the result.

        If `blocks` were given and the kernel has `block_into`, the kernel merges before it rounds. The result
        is then as exact as that of a single block, whatever the number of blocks.

        Args:
            kernel: computes the block.
            q: [B, H, rows, D], only the query rows `rows`.
            spans: keys and values, as for `block_into` in `contract`; exactly one without `block_into`.
            shape: the shape of the block over the first span.
            softmax_scale: multiplies the scores.
            rows: the query rows that the block covers, step 1.
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
        """Return the merged result, [B, L, H, D] contiguous in dtype. Rows of no block are 0.

        The tensor may share memory with the accumulator or with the tensors of the first block.
        """
        if self._final is None:
            return self._old()[0].to(dtype).contiguous()
        for start, stop in self._undone:
            self._final[:, start:stop] = self._old()[0][:, start:stop]
        return self._final.to(dtype)

    @property
    def lse(self) -> Tensor:
        """The merged log-sum-exp, [B, H, L] float32. Rows of no block are -inf."""
        assert self._lse is not None, "nothing was merged"
        return self._lse

    def _old(self) -> tuple[Tensor, Tensor]:
        """Return out and lse so far. Before the first merge they are 0 and -inf."""
        if self._out is None or self._lse is None:
            batch, q_len, num_heads, _ = self._shape
            self._out = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
            self._lse = torch.full((batch, num_heads, q_len), float("-inf"), device=self._device)
        return self._out, self._lse

    def _target(self, old: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the tensors that the next merge writes: the accumulator, or the final output and its lse."""
        is_last = self._blocks is not None and self._attended == len(self._blocks)
        dtype = self._dtype if is_last else torch.float32
        if not self._adopted and dtype == torch.float32:
            return old
        return old[0].new_empty(self._shape, dtype=dtype), torch.empty_like(
            old[1], memory_format=torch.contiguous_format
        )


def rows_done(blocks: Sequence[Rows], q_len: int) -> tuple[list[Rows], list[Rows]]:
    """Find the rows that are done after each block, since no later block covers them.

    Only one contiguous range counts per block.

    Args:
        blocks: the rows of each block, in order.
        q_len: the number of query rows.

    Returns:
        Per block the range that is done after it, (start, start) if there is none; and the ranges that are
        left over at the end.
    """
    covered: list[Rows] = []
    done: list[Rows] = []
    for rows in reversed(blocks):
        done.append(next(_without([rows], covered), (rows[0], rows[0])))
        covered.append(rows)
    return done[::-1], list(_without([(0, q_len)], done))


def _without(runs: Iterable[Rows], covered: Sequence[Rows]) -> Iterator[Rows]:
    """Yield the parts of the ranges `runs` that no range in `covered` has."""
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
    """Do the same as `triton_merge.merge_rows`, with PyTorch's operators."""
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
