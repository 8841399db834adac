"""Launch the Hopper kernel: check the blocks and build the kernel's arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ringexp.kernels.arithmetic import LOG2E, ceil_div
from ringexp.kernels.contract import FusedLimits, KeySpan, Rows, Sending, check_block
from ringexp.kernels.hopper_counters import WORD, counters_of, set_flags
from ringexp.kernels.hopper_groups import (
    Arguments,
    Destinations,
    Finish,
    FurtherSpans,
    Inputs,
    Load,
    Outputs,
    Pieces,
    SentDescriptors,
    Sizes,
    Strides,
    Words,
)
from ringexp.kernels.hopper_tiles import (
    BLOCK_N,
    REGISTERS,
    ROWS,
    RUN,
    band_of_heads,
    computing_ms,
    num_consumers,
    num_couriers,
)
from ringexp.kernels.hopper_tma import descriptor, fitting
from ringexp.planning import BlockShape

Item = TypeVar("Item")
Filler = TypeVar("Filler")

LIMITS = FusedLimits(spans=4, tile=128)
_MOST_FURTHER = LIMITS.spans - 1


class Result(NamedTuple):
    """The tensors that a launch writes, and whether it merges into them.

    Attributes:
        out: [B, Lq, H, D], D contiguous.
        lse: [B, H, Lq] float32, rows evenly apart.
        merge: whether the launch merges into the content of out and lse.
        final: receives the rows `done` in place of out, with out's strides; None: no rows.
        done: rows of q that no later block covers.
    """

    out: Tensor
    lse: Tensor
    merge: bool = False
    final: Tensor | None = None
    done: Rows = (0, 0)


def launch(
    q: Tensor, spans: Sequence[KeySpan], shape: BlockShape, softmax_scale: float, result: Result
) -> None:
    """Launch the kernel on q and on spans that TMA can load. `contract` documents the arguments."""
    _check(q, spans, shape, softmax_scale, result)
    causal = shape is BlockShape.CAUSAL
    (first, *further), sending = spans, spans[0].sending
    num_sms = torch.cuda.get_device_properties(q.device).multi_processor_count
    staggered = causal or any(span.from_row for span in further)
    heads, head_dim = q.shape[0] * q.shape[1], q.shape[3]
    consumers = num_consumers(q.shape[2], heads, head_dim, staggered or sending is not None, num_sms)
    sizes = _sizes(q, spans, consumers, staggered)
    pieces = _num_pieces(spans)
    by_tma = causal and not result.merge and result.final is None
    load, destinations = _NO_LOAD, _NO_DESTINATIONS
    if sending:
        load = _load(sending, first.k.shape[1] // pieces, computing_ms(q.shape, spans, shape, num_sms))
        destinations = _destinations(sending)
    arguments = Arguments(
        inputs=_inputs(q, spans),
        sent=_sent_descriptors(sending),
        outputs=_outputs(result, by_tma),
        words=_words(further, sending, pieces, q.device),
        strides=_strides(result),
        sizes=sizes,
        further=_further_spans(further),
        pieces=Pieces(first.k.shape[1] // pieces, pieces, *_read_flags(further)),
        load=load,
        destinations=destinations,
        finish=Finish(*result.done, softmax_scale * LOG2E),
    )
    consumer_regs, producer_regs = REGISTERS[consumers]
    with torch.cuda.device_of(q):
        _kernel().attention_block[(min(sizes.total, num_sms),)](
            *arguments.flat(),
            SPANS=len(spans),
            AWAIT=arguments.words.waited_ptr is not None,
            SENDS=len(sending.to) if sending else 0,
            CAUSAL=causal,
            MERGE=result.merge,
            FINAL=result.final is not None,
            CONSUMERS=consumers,
            CONSUMER_REGS=consumer_regs,
            PRODUCER_REGS=producer_regs,
            num_warps=4,
            launch_pdl=True,
        )


def _check(
    q: Tensor, spans: Sequence[KeySpan], shape: BlockShape, softmax_scale: float, result: Result
) -> None:
    """Assert the caller's half of the contract, and that further spans consist of whole tiles."""
    (first, *further), (out, lse, _, final, _) = spans, result
    check_block(q, first.k, first.v, shape, softmax_scale)
    assert len(spans) <= LIMITS.spans, len(spans)
    for span in further:
        check_block(q[:, :, span.from_row :], span.k, span.v, BlockShape.FULL, softmax_scale)
        ragged = span.from_row % LIMITS.tile or span.k.shape[2] % LIMITS.tile
        assert not ragged, (span.from_row, span.k.shape)
    batch, num_heads, q_len, head_dim = q.shape
    assert out.shape == (batch, q_len, num_heads, head_dim), out.shape
    assert out.stride(3) == 1, out.stride()
    assert lse.shape == (batch, num_heads, q_len), lse.shape
    assert lse.stride(2) == 1, lse.stride()
    assert lse.stride(0) == num_heads * lse.stride(1) or batch == 1, lse.stride()
    assert lse.dtype == torch.float32, lse.dtype
    assert final is None or final.stride() == out.stride(), (final.stride(), out.stride())


def _sizes(q: Tensor, spans: Sequence[KeySpan], consumers: int, staggered: bool) -> Sizes:
    batch, num_heads, q_len, head_dim = q.shape
    num_kv_heads, kv_len = spans[0].k.shape[1:3]
    heads, group = batch * num_heads, num_heads // num_kv_heads
    tiles = ceil_div(q_len, consumers * ROWS)
    kv_bytes = 2 * q.element_size() * sum(span.k.shape[2] for span in spans) * head_dim
    band = band_of_heads(heads, group, kv_bytes) if staggered else 1
    return Sizes(tiles, tiles * heads, num_heads, band, group, q_len, kv_len)


def _num_pieces(spans: Sequence[KeySpan]) -> int:
    """Return the number of pieces in which spans arrive and are sent. It is the same for all spans."""
    counts = {len(span.arriving.words) for span in spans if span.arriving}
    counts |= {span.sending.pieces for span in spans if span.sending}
    assert len(counts) <= 1, counts
    return counts.pop() if counts else 1


def _inputs(q: Tensor, spans: Sequence[KeySpan]) -> Inputs:
    descriptors = [descriptor(x, BLOCK_N) for span in spans for x in (span.k, span.v)]
    return Inputs(descriptor(q, ROWS), *_padded(descriptors, 2 * LIMITS.spans, None))


def _outputs(result: Result, by_tma: bool) -> Outputs:
    desc = descriptor(result.out.transpose(1, 2), ROWS) if by_tma else None
    return Outputs(desc, result.out, result.lse, result.out if result.final is None else result.final)


def _strides(result: Result) -> Strides:
    batch, row, head, _ = result.out.stride()
    return Strides(batch, head, row, result.lse.stride(1))


def _words(further: Sequence[KeySpan], sending: Sending | None, pieces: int, device: torch.device) -> Words:
    counter = counters_of(device).next()
    counts, took = (sending.counts, sending.took) if sending else (None, None)
    arriving = [span.arriving for span in further if span.arriving]
    if not arriving:
        return Words(counter, None, None, None, None, counts, took)
    assert all(flags.words.shape == (pieces,) for flags in arriving), arriving
    assert pieces == 1 or all(flags.words.stride(0) == WORD for flags in arriving), arriving
    words = [span.arriving.words if span.arriving else set_flags(device, pieces) for span in further]
    first, second, third = _padded(words, _MOST_FURTHER, None)
    return Words(counter, first, second, third, arriving[0].waited, counts, took)


def _further_spans(further: Sequence[KeySpan]) -> FurtherSpans:
    numbers = [number for span in further for number in (span.from_row, ceil_div(span.k.shape[2], BLOCK_N))]
    return FurtherSpans(*_padded(numbers, 2 * _MOST_FURTHER, 0))


def _read_flags(further: Sequence[KeySpan]) -> list[int]:
    return _padded([span.arriving.read_flag if span.arriving else 0 for span in further], _MOST_FURTHER, 0)


def _sent_descriptors(sending: Sending | None) -> SentDescriptors:
    if not sending:
        return _NO_DESCRIPTORS
    tensors = [
        fitting(sending.k),
        fitting(sending.v),
        *(x for place in sending.to for x in (place.k, place.v)),
    ]
    return SentDescriptors(*_padded([descriptor(x, ROWS) for x in tensors], 2 + 2 * _MOST_FURTHER, None))


def _load(sending: Sending, heads_per_piece: int, launch_ms: float) -> Load:
    """Divide the keys and values to send into runs of tiles. launch_ms: the time that the launch computes."""
    assert len(sending.to) <= _MOST_FURTHER, sending.to
    for place in sending.to:
        assert place.k.shape == place.v.shape, place
        assert place.k.shape[2] <= sending.k.shape[2], place
    tiles = max(ceil_div(place.k.shape[2], ROWS) for place in sending.to)
    runs_per_head = ceil_div(tiles, RUN)
    runs_per_piece = 2 * sending.k.shape[0] * heads_per_piece * runs_per_head
    sent_bytes = sum(
        math.prod(x.shape) * x.dtype.itemsize for place in sending.to for x in (place.k, place.v)
    )
    couriers = num_couriers(sent_bytes, launch_ms)
    return Load(runs_per_piece * sending.pieces, runs_per_piece, runs_per_head, tiles, couriers)


def _destinations(sending: Sending) -> Destinations:
    numbers = [n for place in sending.to for n in (place.free, place.ready, ceil_div(place.k.shape[2], ROWS))]
    return Destinations(*_padded(numbers, len(Destinations._fields), 0))


def _padded(items: Sequence[Item], length: int, filler: Filler) -> list[Item | Filler]:
    """Return the items, followed by fillers up to `length`."""
    return [*items, *[filler] * (length - len(items))]


_NO_DESCRIPTORS = SentDescriptors(*[None] * len(SentDescriptors._fields))
_NO_LOAD = Load(*[0] * len(Load._fields))
_NO_DESTINATIONS = Destinations(*[0] * len(Destinations._fields))


def _kernel() -> ModuleType:
    """Return the module of the device code, which needs triton."""
    from ringexp.kernels import hopper_kernel

    return hopper_kernel
