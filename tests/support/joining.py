"""A kernel that merges and joins blocks, by the oracle: what rings do with such kernels, shown on the CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ringexp.kernels import Arriving, Joint, Kernel, KeySpan, OnlineSoftmax, oracle
from ringexp.kernels.contract import Rows


def block_into(
    q: Tensor,
    spans: Sequence[KeySpan],
    causal: bool,
    softmax_scale: float,
    acc: Tensor,
    acc_lse: Tensor,
    fresh: bool,
    final: Tensor,
    done: Rows,
) -> None:
    """`contract`'s block_into, by the oracle and the merge of two blocks."""
    batch, heads, length, dim = q.shape
    state = OnlineSoftmax(batch, heads, length, dim, q.device)
    if not fresh:
        state.merge(acc.transpose(1, 2).clone(), acc_lse.clone())
    for number, (k, v, from_row, arriving) in enumerate(spans):
        assert number or (not from_row and arriving is None)
        if arriving is not None:
            _await(arriving)
        out, lse = oracle.block(q[:, :, from_row:], k, v, causal and not number, softmax_scale)
        state.merge(out.float(), lse, slice(from_row, None))
    over = slice(*done)
    final[:, over] = state.output(torch.float32)[:, over].to(final.dtype)
    if not (fresh and done == (0, length)):
        acc.copy_(state.output(torch.float32))
        acc[:, over] = float("nan")
    acc_lse.copy_(state.lse)


def _await(arriving: Arriving) -> None:
    began = time.monotonic()
    while not arriving.words.all():
        assert time.monotonic() - began < 60
        time.sleep(0)
    arriving.waited.fill_(round((time.monotonic() - began) * 1e6))


def joining_kernel(spans: int = 3, tile: int = 4) -> Kernel:
    return Kernel("joining", oracle.block, block_into, joint=Joint(spans, tile))
