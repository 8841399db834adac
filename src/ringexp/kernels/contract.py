"""What every block kernel agrees to, and the check of it.

A block is one attention call of the ring: all queries of one span against all keys of another.

    block(q, k, v, causal, softmax_scale) -> (out, lse)

- q [B, H, Lq, D], k and v [B, Hkv, Lk, D]: one dtype, one device, H a multiple of Hkv, every length >= 1.
  Any strides, except that D is contiguous; usually these are [B, L, H, D] tensors, transposed.
- causal: query i sees keys 0..i; needs Lq == Lk. There is no other mask, so no row is ever fully masked.
- softmax_scale > 0 multiplies the scores.
- out [B, H, Lq, D] in q's dtype; lse [B, H, Lq] float32, the natural log of the sum of exp(scores).
- A row whose scores are all -inf, by keys that are -inf or overflow, has out 0 and lse -inf or `LOWEST_LSE`,
  so that it merges with weight 0. The Triton kernels do not know such rows and answer NaN. A row that sees a
  NaN has out NaN.

A kernel may also have `block_into(q, spans, causal, softmax_scale, acc, acc_lse, fresh, final, done)`, for
one block or several at once: the keys of the first span are for all rows of q, and causal is about them
alone; those of a further one are for the rows from its from_row on. `FusedLimits` says what may be a further
one.
It puts its result into acc [B, Lq, H, D] and acc_lse [B, H, Lq], both float32 and unrounded, possibly views.
If fresh, it writes them; else they hold the result over other keys, and it merges into them, as in `merge`.
Rows done[0] to done[1] get no further block: they go to final, of q's dtype and acc's shape and strides,
instead of to acc; if those are all rows of a fresh call, acc may be of any dtype.

Forward only: call under torch.no_grad() or torch.inference_mode().
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, dtype, finfo, float32

BlockFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
Rows: TypeAlias = tuple[int, int]
"""Rows [start, stop) of a tensor."""

LOWEST_LSE = finfo(float32).min
"""The log-sum-exp of a row without scores, on CUDA: the merge there takes differences, of -inf too NaN."""


class ArrivalFlags(NamedTuple):
    """Flags by which a kernel learns that keys and values have arrived, heads after heads.

    Attributes:
        words: int32 [P], 16 bytes apart, P a divisor of Hkv. The first Hkv / P heads are there once words[0]
            is not 0, and so on. The kernel sets all words to 0 once it has read everything.
        waited: int32 [1], shared by all spans of a launch. The kernel writes there how long its programs
            waited on average, in us.
        taken: The address of a word on the sender's GPU. The kernel sets it to 1 after `words` are 0 again.
    """

    words: Tensor
    waited: Tensor
    taken: int


class Remote(NamedTuple):
    """Where a tensor lies in another GPU's memory, which kernels here can write to."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: dtype

    def data_ptr(self) -> int:
        return self.address

    def stride(self) -> tuple[int, ...]:
        return self.strides


class Destination(NamedTuple):
    """Where the first n keys and values go, [B, Hkv, n, D] each.

    The kernel writes there once the word at the address `free` is 1, which it makes 0 again. Each time it has
    written Hkv / P heads of both it makes one of P words 1, which lie 16 bytes apart from the address `ready`
    on, on the other GPU.
    """

    k: Remote
    v: Remote
    free: int
    ready: int


class Sending(NamedTuple):
    """Keys and values [B, Hkv, L, D] that a kernel sends to other ranks beside its blocks.

    pieces: P of all destinations. counts, int32 [2 + P]: zeros for the kernel to count with, and zeros again
    when it is over. took, int32 [1]: where it leaves how long it was at it, ns.
    """

    k: Tensor
    v: Tensor
    to: Sequence[Destination]
    pieces: int
    counts: Tensor
    took: Tensor


class KeySpan(NamedTuple):
    """Keys and values [B, Hkv, Lk, D] that the query rows from from_row on attend to, all of them.

    arriving: of a further span alone; sending: of the first one alone.
    """

    k: Tensor
    v: Tensor
    from_row: int = 0
    arriving: ArrivalFlags | None = None
    sending: Sending | None = None


class FusedLimits(NamedTuple):
    """What a `block_into` takes: so many spans; Lk and from_row of further ones are multiples of `tile`.

    It awaits those further ones that are `arriving`, all of a call in as many pieces, and sends to one
    destination less than it takes spans.
    """

    spans: int
    tile: int


BlockIntoFunction: TypeAlias = Callable[
    [Tensor, Sequence[KeySpan], bool, float, Tensor, Tensor, bool, Tensor, Rows], None
]


@dataclass(frozen=True)
class Kernel:
    """A block kernel that fits one device, dtype and head_dim.

    Attributes:
        name: its name among the choices; never `auto`.
        block: computes one block.
        block_into: merges one block or several into earlier results as it computes them; None if the kernel
            cannot.
        fused_limits: how many blocks `block_into` takes at once; None: one.
    """

    name: str
    block: BlockFunction
    block_into: BlockIntoFunction | None = None
    fused_limits: FusedLimits | None = None


class Provider(Protocol):
    """What the module of a kernel offers. Importing it must not need the kernel's own packages."""

    def why_unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Return what the kernel lacks there, as the end of a sentence "needs ..."; None if it can run.

        The device type and the dtype fit: `KernelSpec` states them, and they are checked before.
        """
        ...

    def kernel(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
        """Return the kernel for a place where nothing is lacking."""
        ...


def check_block(q: Tensor, k: Tensor, v: Tensor, causal: bool, softmax_scale: float) -> None:
    """Assert the caller's half of the contract; a failure is a bug of the caller, never bad user input."""
    batch, num_heads, q_len, head_dim = q.shape
    _, num_kv_heads, kv_len, _ = k.shape
    assert k.shape == v.shape == (batch, num_kv_heads, kv_len, head_dim), (q.shape, k.shape, v.shape)
    assert q.dtype == k.dtype == v.dtype, (q.dtype, k.dtype, v.dtype)
    assert num_heads % num_kv_heads == 0, (num_heads, num_kv_heads)
    assert min(q_len, kv_len) > 0, (q_len, kv_len)
    assert not causal or q_len == kv_len, f"a causal block is square, got {q_len} x {kv_len}"
    assert softmax_scale > 0, softmax_scale
    assert head_dim == 1 or q.stride(3) == k.stride(3) == v.stride(3) == 1, "head_dim must be contiguous"
