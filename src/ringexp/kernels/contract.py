"""The contract of every block kernel, and the check of it.

A block is one attention call of the ring: all queries of one span against all keys of another.

    block(q, k, v, shape, softmax_scale) -> (out, lse)

- q [B, H, Lq, D], k and v [B, Hkv, Lk, D]: one dtype, one device, H a multiple of Hkv, every length >= 1.
  Any strides, except that D is contiguous; usually these are [B, L, H, D] tensors, transposed.
- shape: FULL, or CAUSAL: query i sees keys 0 to i, and Lq == Lk. So no row is ever fully masked.
- softmax_scale > 0 multiplies the scores.
- out [B, H, Lq, D] in q's dtype; lse [B, H, Lq] float32, the natural log of the sum of exp(scores).
- A row can have only scores of -inf, if keys are -inf or products overflow. Its out is 0 and its lse -inf or
  `LOWEST_LSE`, so that it merges with weight 0. The Triton kernels answer NaN for such a row. A row that sees
  a NaN has out NaN.

A kernel may also merge its results into earlier results, and compute several blocks per call:

    block_into(q, spans, shape, softmax_scale, accumulator)

All rows of q attend to the first `KeySpan`; `shape` holds for that span only. The rows from `from_row` on
attend to all keys of a further span. `FusedLimits` states which further spans a kernel takes, and
`Accumulator` where the result goes.

Forward only: call under torch.no_grad() or torch.inference_mode().
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, dtype, finfo, float32

from ringexp.planning import BlockShape

BlockFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor, BlockShape, float], tuple[Tensor, Tensor]]
Rows: TypeAlias = tuple[int, int]
"""Rows [start, stop) of a tensor."""

LOWEST_LSE = finfo(float32).min
"""The log-sum-exp of a row without scores, on CUDA. The merge there subtracts, and -inf - -inf is NaN."""


class ArrivalFlags(NamedTuple):
    """Flags that tell a kernel which heads of keys and values have arrived.

    Attributes:
        words: int32 [P], 16 bytes apart, P a divisor of Hkv. The first Hkv / P heads have arrived once
            words[0] is not 0, and so on. The kernel sets all words to 0 once it has read everything.
        waited: int32 [1], shared by all spans of a launch. The kernel writes the average time that its
            programs waited, in us.
        read_flag: the address of a word on the sender's GPU. The kernel sets it to 1 after it has set `words`
            back to 0.
    """

    words: Tensor
    waited: Tensor
    read_flag: int


class Remote(NamedTuple):
    """A tensor in another GPU's memory that kernels of this GPU can write to."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: dtype

    def data_ptr(self) -> int:
        return self.address

    def stride(self) -> tuple[int, ...]:
        return self.strides


class Destination(NamedTuple):
    """The memory on another GPU that receives the first n keys and values.

    Attributes:
        k: memory of the keys, [B, Hkv, n, D].
        v: memory of the values, [B, Hkv, n, D].
        free: the address of a word on this GPU. The kernel writes k and v once the word is 1, and sets the
            word back to 0.
        ready: the address of the first of P words on the other GPU, 16 bytes apart. The kernel sets the next
            one to 1 each time it has written Hkv / P heads of both.
    """

    k: Remote
    v: Remote
    free: int
    ready: int


class Sending(NamedTuple):
    """Keys and values that a kernel sends to other ranks while it computes its blocks.

    Attributes:
        k: keys [B, Hkv, L, D].
        v: values [B, Hkv, L, D].
        to: the destinations.
        pieces: P, the same for all destinations.
        counts: int32 [2 + P], the kernel's counters: zeros before and after the launch.
        took: int32 [1]. The kernel writes the duration of the transfer, in ns.
    """

    k: Tensor
    v: Tensor
    to: Sequence[Destination]
    pieces: int
    counts: Tensor
    took: Tensor


class KeySpan(NamedTuple):
    """Keys and values to which all query rows from from_row on attend.

    Attributes:
        k: keys [B, Hkv, Lk, D].
        v: values [B, Hkv, Lk, D].
        from_row: the first query row that attends.
        arriving: flags of their arrival; only for a further span. None: they have arrived.
        sending: what the kernel sends meanwhile; only for the first span. None: nothing.
    """

    k: Tensor
    v: Tensor
    from_row: int = 0
    arriving: ArrivalFlags | None = None
    sending: Sending | None = None


class FusedLimits(NamedTuple):
    """Limits of a fused `block_into` call.

    The kernel waits for further spans that are `arriving`. All of them arrive in the same number of pieces.
    It can send to at most spans - 1 destinations.

    Attributes:
        spans: key spans per call.
        tile: the length and `from_row` of every span after the first must be multiples of this.
    """

    spans: int
    tile: int


class Accumulator(NamedTuple):
    """The tensors that a `block_into` call writes: rows of earlier results, and of the output.

    Attributes:
        out: [B, Lq, H, D] float32, unrounded, possibly a view. If the call is fresh and all rows are done,
            nothing is written here, and the dtype may be any.
        lse: [B, H, Lq] float32, possibly a view.
        fresh: whether the call overwrites out and lse. Otherwise they hold the result over other keys, and
            the call merges into them, as `merge` does.
        final: receives the rows `done` in place of out: q's dtype, out's shape and strides.
        done: the rows that no later block covers.
    """

    out: Tensor
    lse: Tensor
    fresh: bool
    final: Tensor
    done: Rows


BlockIntoFunction: TypeAlias = Callable[[Tensor, Sequence[KeySpan], BlockShape, float, Accumulator], None]


@dataclass(frozen=True)
class Kernel:
    """A block kernel that fits one device, dtype and head_dim.

    Attributes:
        name: its name among the choices; never `auto`.
        block: computes one block.
        block_into: merges one block or several into earlier results as it computes them; None if the kernel
            cannot.
        fused_limits: the limits of `block_into`; None: one block per call.
    """

    name: str
    block: BlockFunction
    block_into: BlockIntoFunction | None = None
    fused_limits: FusedLimits | None = None


class Provider(Protocol):
    """The interface of a kernel's module. Importing it must not need the kernel's own packages."""

    def why_unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Return what the kernel lacks there, as the end of a sentence "needs ..."; None if it can run.

        The device type and the dtype fit: `KernelSpec` states them, and they are checked before.
        """
        ...

    def kernel(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
        """Return the kernel for a place where nothing is lacking."""
        ...


def check_block(q: Tensor, k: Tensor, v: Tensor, shape: BlockShape, softmax_scale: float) -> None:
    """Assert the caller's half of the contract. A failure is a bug of the caller, never bad user input."""
    batch, num_heads, q_len, head_dim = q.shape
    _, num_kv_heads, kv_len, _ = k.shape
    assert k.shape == v.shape == (batch, num_kv_heads, kv_len, head_dim), (q.shape, k.shape, v.shape)
    assert q.dtype == k.dtype == v.dtype, (q.dtype, k.dtype, v.dtype)
    assert num_heads % num_kv_heads == 0, (num_heads, num_kv_heads)
    assert min(q_len, kv_len) > 0, (q_len, kv_len)
    square = q_len == kv_len
    assert shape is BlockShape.FULL or square, f"a {shape.value} block is square, got {q_len} x {kv_len}"
    assert softmax_scale > 0, softmax_scale
    assert head_dim == 1 or q.stride(3) == k.stride(3) == v.stride(3) == 1, "head_dim must be contiguous"
