"""A kernel that merges and joins blocks, by the oracle: what rings do with such kernels, shown on the CPU."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ringexp.kernels import (
    Accumulator,
    ArrivalFlags,
    FusedLimits,
    Kernel,
    KeySpan,
    OnlineSoftmax,
    Remote,
    Sending,
    oracle,
)
from ringexp.planning import BlockShape

PATIENCE_S = 60

carried: list[int] = []
"""Bytes of what was sent to other ranks."""


def block_into(
    q: Tensor, spans: Sequence[KeySpan], shape: BlockShape, softmax_scale: float, accumulator: Accumulator
) -> None:
    """`contract`'s block_into, by the oracle and the merge of two blocks."""
    acc, acc_lse, fresh, final, done = accumulator
    batch, heads, length, dim = q.shape
    state = OnlineSoftmax(batch, heads, length, dim, q.device)
    if not fresh:
        state.merge(acc.transpose(1, 2).clone(), acc_lse.clone())
    if spans[0].sending is not None:
        _send(spans[0].sending)
    for number, (k, v, from_row, arriving, sending) in enumerate(spans):
        assert number or (not from_row and arriving is None)
        assert not number or sending is None
        if arriving is not None:
            _await(arriving)
        out, lse = oracle.block(q[:, :, from_row:], k, v, BlockShape.FULL if number else shape, softmax_scale)
        state.merge(out.float(), lse, slice(from_row, None))
    over = slice(*done)
    final[:, over] = state.output(torch.float32)[:, over].to(final.dtype)
    if not (fresh and done == (0, length)):
        acc.copy_(state.output(torch.float32))
        acc[:, over] = float("nan")
    acc_lse.copy_(state.lse)
    for span in spans:
        if span.arriving is not None:
            span.arriving.words.zero_()
            _word(span.arriving.read_flag).value = 1


def _await(arriving: ArrivalFlags) -> None:
    began = time.monotonic()
    while not arriving.words.all():
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0)
    arriving.waited.fill_(round((time.monotonic() - began) * 1e6))


def _send(sending: Sending) -> None:
    began = time.monotonic()
    assert not sending.counts[: 2 + sending.pieces].any()
    for destination in sending.to:
        while not _word(destination.free).value:
            assert time.monotonic() - began < PATIENCE_S
            time.sleep(0)
        _word(destination.free).value = 0
    heads = sending.k.shape[1] // sending.pieces
    for piece in range(sending.pieces):
        for destination in sending.to:
            for x, remote in ((sending.k, destination.k), (sending.v, destination.v)):
                part = slice(piece * heads, (piece + 1) * heads)
                into = _tensor(remote)[:, part]
                into.copy_(x[:, part, : remote.shape[2]])
                carried.append(into.nbytes)
            _word(destination.ready + 16 * piece).value = 1
    sending.took.fill_(round((time.monotonic() - began) * 1e9))


def _word(address: int) -> ctypes.c_uint32:
    return ctypes.c_uint32.from_address(address)


def _tensor(remote: Remote) -> Tensor:
    extent = 1 + sum((n - 1) * stride for n, stride in zip(remote.shape, remote.strides, strict=True))
    memory = (ctypes.c_uint8 * (extent * remote.dtype.itemsize)).from_address(remote.address)
    return torch.frombuffer(memory, dtype=remote.dtype).as_strided(remote.shape, remote.strides)


def joining_kernel(spans: int = 3, tile: int = 4) -> Kernel:
    return Kernel("joining", oracle.block, block_into, fused_limits=FusedLimits(spans, tile))
