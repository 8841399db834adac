"""Our attention block kernel for Hopper GPUs (H100, H200): warp specialised, TMA loads, asynchronous wgmma.

float16 and bfloat16, head_dim 64 and 128. `block_into` keeps results in float32 and merges them into those of
earlier blocks as it writes them, and takes the keys of several blocks at once. The device code is in
`hopper_kernel`, which is imported at the first call.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ringexp.kernels.contract import FusedLimits, KeySpan, Remote, Rows, Sending, check_block
from ringexp.planning.flops import pair_flops

HEAD_DIMS = (64, 128)
DTYPES = (torch.float16, torch.bfloat16)
CAPABILITY = (9, 0)
MIN_TRITON = (3, 6)
JOINT = FusedLimits(spans=4, tile=128)
_ALIGNMENT_BYTES = 16  # what TMA asks of every address and stride


_LAUNCHES = 1 << 16  # that have a counter of their own
_L2_BYTES = 32 << 20  # of keys and values that query tiles of several heads share the L2 cache with
_REGISTERS = {2: (240, 24), 3: (160, 32)}
"""Consumer warpgroups -> registers a thread of theirs and of the producer's: 65536 in all."""
_FEWEST_COURIERS = 16  # programs that send
_COURIER_GBPS = 9.0  # of one
_SM_TFLOPS = 5.0
_SENDING_SHARE = 0.5  # of a launch's time, for no more SMs to be busy with it than need be
_THIRD_CONSUMER = 1.1  # times as fast, as measured at 16,384 tokens


def block(q: Tensor, k: Tensor, v: Tensor, causal: bool, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """One block as in `contract`; out is [B, L, H, D] contiguous in memory."""
    batch, num_heads, q_len, head_dim = q.shape
    out = q.new_empty(batch, q_len, num_heads, head_dim)
    lse = q.new_empty(batch, num_heads, q_len, dtype=torch.float32)
    _launch(_fitting(q), [KeySpan(_fitting(k), _fitting(v))], causal, softmax_scale, out, lse)
    return out.transpose(1, 2), lse


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
    """Blocks as in `contract`, merged into the float32 results of earlier ones as they are written."""
    q, spans = _fitting(q), [span._replace(k=_fitting(span.k), v=_fitting(span.v)) for span in spans]
    if fresh and done == (0, q.shape[2]):
        _launch(q, spans, causal, softmax_scale, final, acc_lse)
    else:
        _launch(q, spans, causal, softmax_scale, acc, acc_lse, merge=not fresh, final=final, done=done)


def _fitting(x: Tensor) -> Tensor:
    """x, or a copy of it that TMA can load."""
    return x if fits(x) else x.clone(memory_format=torch.contiguous_format)


def fits(x: Tensor) -> bool:
    """Whether TMA can load a [B, H, L, D] tensor: D contiguous, the rest on 16-byte boundaries."""
    return (
        x.data_ptr() % _ALIGNMENT_BYTES == 0
        and x.stride(3) == 1
        and all(
            size == 1 or (stride > 0 and stride * x.element_size() % _ALIGNMENT_BYTES == 0)
            for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)
        )
    )


def why_unavailable(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> str | None:
    """What `block` lacks there, as the end of a sentence "needs ..."; None if it can run."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"CUDA, but device={device.type}"
    if dtype not in DTYPES:
        return f"float16 or bfloat16, but dtype={str(dtype).removeprefix('torch.')}"
    if head_dim not in HEAD_DIMS:
        return f"head_dim 64 or 128, but head_dim={head_dim}"
    capability = torch.cuda.get_device_capability(device)
    if capability != CAPABILITY:
        return "a Hopper GPU (compute capability 9.0), but this GPU has {}.{}".format(*capability)
    if importlib.util.find_spec("triton") is None:
        return "the triton package, which is not installed"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_TRITON:
        return f"triton >= 3.6, but triton=={version}"
    return None


def _launch(
    q: Tensor,
    spans: Sequence[KeySpan],
    causal: bool,
    softmax_scale: float,
    out: Tensor,
    lse: Tensor,
    merge: bool = False,
    final: Tensor | None = None,
    done: Rows = (0, 0),
) -> None:
    """out [B, Lq, H, D], D contiguous; lse [B, H, Lq] float32, rows evenly apart; final, done: `contract`."""
    (k, v, *_, sending), *further = spans
    check_block(q, k, v, causal, softmax_scale)
    assert len(spans) <= JOINT.spans, len(spans)
    for span in further:
        check_block(q[:, :, span.from_row :], span.k, span.v, False, softmax_scale)
        assert span.from_row % JOINT.tile == span.k.shape[2] % JOINT.tile == 0, (span.from_row, span.k.shape)
    batch, num_heads, q_len, head_dim = q.shape
    num_kv_heads, kv_len = k.shape[1:3]
    assert out.shape == (batch, q_len, num_heads, head_dim), out.shape
    assert out.stride(3) == 1, out.stride()
    assert lse.shape == (batch, num_heads, q_len), lse.shape
    assert lse.stride(2) == 1, lse.stride()
    assert lse.stride(0) == num_heads * lse.stride(1) or batch == 1, lse.stride()
    assert lse.dtype == torch.float32, lse.dtype
    assert final is None or final.stride() == out.stride(), (final.stride(), out.stride())
    kernel = _kernel()
    num_sms = torch.cuda.get_device_properties(q.device).multi_processor_count
    staggered = causal or any(span.from_row for span in further)
    heads = batch * num_heads
    consumers = _consumers(q_len, heads, head_dim, staggered or sending is not None, num_sms)
    consumer_regs, producer_regs = _REGISTERS[consumers]
    num_tiles = -(-q_len // (consumers * kernel.ROWS.value))
    total = num_tiles * heads
    group = num_heads // num_kv_heads
    keys = sum(span.k.shape[2] for span in spans)
    band = _band(heads, group, 2 * k.element_size() * keys * head_dim) if staggered else 1
    rows = kernel.BLOCK_N.value
    descriptors = [_descriptor(x, rows) for span in spans for x in (span.k, span.v)]
    seen = [n for span in further for n in (span.from_row, span.k.shape[2] // kernel.BLOCK_N.value)]
    absent = 2 * (JOINT.spans - len(spans))
    awaited = _awaited(further, q.device)
    pieces = sending.pieces if sending else awaited.pieces
    assert awaited.waited is None or awaited.pieces == pieces, (awaited, sending)
    load = _NOTHING
    if sending:
        load = _load(sending, num_kv_heads // pieces, _computing_ms(q, spans, causal, num_sms))
    by_tma = causal and not merge and final is None
    with torch.cuda.device_of(q):
        kernel.attention_block[(min(total, num_sms),)](
            _descriptor(q, kernel.ROWS.value),
            *descriptors,
            *[None] * absent,
            *load.descriptors,
            _descriptor(out.transpose(1, 2), kernel.ROWS.value) if by_tma else None,
            out,
            lse,
            out if final is None else final,
            _counters(q.device).next(),
            *awaited.words,
            awaited.waited,
            sending.counts if sending else None,
            sending.took if sending else None,
            out.stride(0),
            out.stride(2),
            out.stride(1),
            lse.stride(1),
            num_tiles,
            total,
            num_heads,
            band,
            group,
            q_len,
            kv_len,
            *seen,
            *[0] * absent,
            num_kv_heads // pieces,
            pieces,
            *awaited.taken,
            *load.numbers,
            *done,
            softmax_scale * math.log2(math.e),
            SPANS=len(spans),
            AWAIT=awaited.waited is not None,
            SENDS=len(sending.to) if sending else 0,
            CAUSAL=causal,
            MERGE=merge,
            FINAL=final is not None,
            CONSUMERS=consumers,
            CONSUMER_REGS=consumer_regs,
            PRODUCER_REGS=producer_regs,
            num_warps=4,
            launch_pdl=True,
        )


def _computing_ms(q: Tensor, spans: Sequence[KeySpan], causal: bool, num_sms: int) -> float:
    """About how long a launch computes."""
    batch, num_heads, q_len, head_dim = q.shape
    pairs = sum((q_len - span.from_row) * span.k.shape[2] for span in spans)
    if causal:
        pairs -= q_len * (q_len - 1) / 2
    return pair_flops(num_heads, head_dim, batch) * pairs / (_SM_TFLOPS * num_sms) / 1e9


class _Awaited(NamedTuple):
    """What a launch awaits, as the kernel takes it: from words1_ptr on, and from taken1 on."""

    pieces: int
    words: list[Tensor | None]
    waited: Tensor | None
    taken: list[int]


def _awaited(further: Sequence[KeySpan], device: torch.device) -> _Awaited:
    most, found = JOINT.spans - 1, [span.arriving for span in further]
    arriving = [each for each in found if each]
    if not arriving:
        return _Awaited(1, [None] * most, None, [0] * most)
    pieces, absent = len(arriving[0].words), most - len(found)
    assert all(each.words.shape == (pieces,) for each in arriving), arriving
    assert pieces == 1 or all(each.words.stride(0) == _kernel().WORD.value for each in arriving), arriving
    words = [each.words if each else _there(device, pieces) for each in found]
    taken = [each.taken if each else 0 for each in found]
    return _Awaited(pieces, [*words, *[None] * absent], arriving[0].waited, [*taken, *[0] * absent])


class _Load(NamedTuple):
    """What a launch sends, as the kernel takes it: from ks_desc on, and from `runs` on."""

    descriptors: list[Any]
    numbers: list[int]


_NOTHING = _Load([None] * 2 * JOINT.spans, [0] * (5 + 3 * (JOINT.spans - 1)))


def _load(sending: Sending, heads_a_piece: int, computing_ms: float) -> _Load:
    """computing_ms: of the launch without it."""
    from ringexp.kernels.hopper_courier import COURIERS, RUN

    rows = _kernel().ROWS.value
    absent = JOINT.spans - 1 - len(sending.to)
    assert absent >= 0, sending.to
    for each in sending.to:
        assert each.k.shape == each.v.shape, each
        assert each.k.shape[2] <= sending.k.shape[2], each
    tiles = [-(-each.k.shape[2] // rows) for each in sending.to]
    runs_a_head = -(-max(tiles) // RUN.value)
    runs_a_piece = 2 * sending.k.shape[0] * heads_a_piece * runs_a_head
    descriptors = [_descriptor(_fitting(x), rows) for x in (sending.k, sending.v)]
    descriptors += [_descriptor(x, rows) for each in sending.to for x in (each.k, each.v)]
    runs = runs_a_piece * sending.pieces
    sent_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for each in sending.to for x in (each.k, each.v))
    sending_ms = sent_bytes / _COURIER_GBPS / 1e6
    couriers = math.ceil(sending_ms / (_SENDING_SHARE * computing_ms))
    couriers = min(max(couriers, _FEWEST_COURIERS), COURIERS.value)
    numbers = [runs, runs_a_piece, runs_a_head, max(tiles), couriers]
    for each, count in zip(sending.to, tiles, strict=True):
        numbers += [each.free, each.ready, count]
    return _Load([*descriptors, *[None] * (2 * absent)], [*numbers, *[0] * (3 * absent)])


def _consumers(q_len: int, heads: int, head_dim: int, staggered: bool, num_sms: int) -> int:
    """How many warpgroups compute, each ROWS query rows of a tile; heads: over the batch.

    At head_dim 64 a third one hides more of the exponentials and makes full tiles faster, unless its larger
    tiles leave more SMs idle at the end. Where tiles see different keys they need the rows of two, which
    divide the keys of a tile.
    """
    if head_dim != 64 or staggered:
        return 2

    def busy(consumers: int) -> float:
        """The part of all SMs' time that goes to rows that exist."""
        rows = consumers * _kernel().ROWS.value
        tiles = -(-q_len // rows) * heads
        return q_len * heads / (-(-tiles // num_sms) * num_sms * rows)

    return 3 if _THIRD_CONSUMER * busy(3) > busy(2) else 2


class _Counters:
    """Zeros on one device for launches to count tiles with; a kernel leaves its own zero again.

    Launches on one stream follow each other and share one. Each launch that a graph captured has its own,
    since the graph may be replayed beside anything else; where those are used up the graph fills one itself.
    The word after it sums up how long they wait.
    """

    def __init__(self, device: torch.device) -> None:
        # Rows as far apart as an allocation may be, for one kernel to serve all.
        self._words = torch.zeros(_LAUNCHES, _ALIGNMENT_BYTES // 4, dtype=torch.int32, device=device)
        self._used = 0
        self._of_streams: dict[int, Tensor] = {}

    def _unused(self) -> Tensor:
        if self._used == _LAUNCHES:
            return torch.zeros_like(self._words[0])
        self._used += 1
        return self._words[self._used - 1]

    def next(self) -> Tensor:
        """The counter of a launch on the current stream."""
        if torch.cuda.is_current_stream_capturing():
            return self._unused()
        stream = torch.cuda.current_stream(self._words.device).cuda_stream
        if stream not in self._of_streams:
            self._of_streams[stream] = self._unused()
        return self._of_streams[stream]


@functools.cache
def _there(device: torch.device, pieces: int) -> Tensor:
    """Words of what need not be awaited, in a launch that awaits something else."""
    return torch.ones(pieces, _kernel().WORD.value, dtype=torch.int32, device=device)[:, 0]


@functools.cache
def _counters(device: torch.device) -> _Counters:
    return _Counters(device)


def _band(heads: int, group: int, kv_bytes: int) -> int:
    """How many heads causal tiles are taken from at a time: as many as the L2 cache holds the keys of.

    heads: over the batch; `group` of them share keys and values of kv_bytes. A divisor of heads.
    """
    fitting = max(_L2_BYTES // kv_bytes, 1) * group
    return max(band for band in range(1, heads + 1) if heads % band == 0 and band <= fitting)


def _descriptor(x: Tensor | Remote, rows: int) -> Any:
    """The TMA descriptor of x [B, H, L, D] for tiles of `rows` rows of one head, zero beyond the last row."""
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    block_shape = [1, 1, rows, x.shape[3]]
    element = gl.bfloat16 if x.dtype == torch.bfloat16 else gl.float16
    shared_layout: Any = gl.NVMMASharedLayout
    layout = shared_layout.get_default_for(block_shape, element)
    # The stride of a single entry means nothing and may be anything; TMA still looks at it.
    strides = [x.shape[3] if n == 1 else stride for n, stride in zip(x.shape[:3], x.stride(), strict=False)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], block_shape, layout)


def _kernel() -> ModuleType:
    from ringexp.kernels import hopper_kernel

    return hopper_kernel
