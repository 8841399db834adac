"""Groups of arguments of the Hopper kernel: how the host fills them in, and device code passes them on.

The kernel takes the members one by one, in the order of `Arguments`: Triton would compile anew for other
integers within a tuple. Every group names its members as the kernel's parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

# TMA descriptors and integers that triton knows as values of its own while it compiles.
Descriptor = Any
Value = Any


class Inputs(NamedTuple):
    """TMA descriptors of q [B, H, Lq, D] and of the keys and values [B, H / group, Lk, D] of all spans.

    A tile of q has ROWS rows, one of keys or values BLOCK_N. k_desc and v_desc are the first span, which all
    query rows see; k1_desc and on are further ones, None where there are fewer.
    """

    q_desc: Descriptor
    k_desc: Descriptor
    v_desc: Descriptor
    k1_desc: Descriptor
    v1_desc: Descriptor
    k2_desc: Descriptor
    v2_desc: Descriptor
    k3_desc: Descriptor
    v3_desc: Descriptor


class SentDescriptors(NamedTuple):
    """TMA descriptors, with tiles of ROWS rows, of the keys and values that are sent and of their places."""

    ks_desc: Descriptor
    vs_desc: Descriptor
    kto1_desc: Descriptor
    vto1_desc: Descriptor
    kto2_desc: Descriptor
    vto2_desc: Descriptor
    kto3_desc: Descriptor
    vto3_desc: Descriptor


class Outputs(NamedTuple):
    """The tensors that results go to.

    Attributes:
        out_desc: TMA descriptor of out [B, H, Lq, D] with q's tiles, if TMA writes it; else None.
        out_ptr: out, D contiguous, by `Strides`.
        lse_ptr: the log-sum-exps [B, H, Lq].
        final_ptr: where rows go that get no further block, laid out as out: see `hopper_epilogue.write`.
    """

    out_desc: Descriptor
    out_ptr: Tensor
    lse_ptr: Tensor
    final_ptr: Tensor


class Words(NamedTuple):
    """Words of device memory by which programs count and wait; all that a launch does not use are None.

    Attributes:
        next_ptr: three zeros, and zeros again at the end: query tiles taken, microseconds waited by all
            programs, and programs that have left.
        words1_ptr: flags of the first further span, WORD apart, one per piece: its heads are loaded once the
            flag is not 0. When everything is read the flags become 0.
        words2_ptr: the same of the second further span.
        words3_ptr: the same of the third further span.
        waited_ptr: how long a program waited on average, in microseconds.
        counts_ptr: see `contract.Sending`.
        took_ptr: see `contract.Sending`.
    """

    next_ptr: Tensor
    words1_ptr: Tensor | None
    words2_ptr: Tensor | None
    words3_ptr: Tensor | None
    waited_ptr: Tensor | None
    counts_ptr: Tensor | None
    took_ptr: Tensor | None


class Strides(NamedTuple):
    """Strides of out, and of heads in the log-sum-exps."""

    stride_ob: int
    stride_oh: int
    stride_ol: int
    stride_lse: int


class Sizes(NamedTuple):
    """The query tiles and the lengths.

    Attributes:
        num_tiles: query tiles per head, of CONSUMERS * ROWS rows each.
        total: query tiles of all heads.
        num_heads: query heads.
        band: how many heads, over the batch, take turns; it divides their number: see `hopper_kernel`.
        group: query heads per head of keys.
        q_len: query rows.
        kv_len: keys of the first span.
    """

    num_tiles: Value
    total: Value
    num_heads: Value
    band: Value
    group: Value
    q_len: Value
    kv_len: Value


class FurtherSpans(NamedTuple):
    """Further spans: from which row on, a whole query tile, each is seen, and how many key tiles it has."""

    from1: int
    tiles1: int
    from2: int
    tiles2: int
    from3: int
    tiles3: int


class Pieces(NamedTuple):
    """The pieces, of whole heads, in which further spans arrive and keys and values are sent.

    taken1 and so on: the address of the word that is set to 1 once a further span is read. 0: that span was
    there before, and its flags stay as they are.
    """

    heads_per_piece: int
    pieces: int
    taken1: int
    taken2: int
    taken3: int


class Load(NamedTuple):
    """The tiles that couriers carry, see `hopper_courier`.

    Attributes:
        runs: runs of tiles in all.
        runs_per_piece: of these, runs of one piece.
        runs_per_head: of these, runs of the keys of one head.
        sent_tiles: tiles per head for the destination that gets most.
        couriers: how many programs carry after the first runs.
    """

    runs: Value
    runs_per_piece: Value
    runs_per_head: Value
    sent_tiles: Value
    couriers: Value


class Destinations(NamedTuple):
    """For each destination the addresses of its words (`contract.Destination`), and its tiles per head."""

    free1: int
    ready1: int
    sent1: int
    free2: int
    ready2: int
    sent2: int
    free3: int
    ready3: int
    sent3: int


class Finish(NamedTuple):
    """Rows [done_start, done_stop) go to final_ptr. scale_log2 is softmax_scale * log2(e)."""

    done_start: int
    done_stop: int
    scale_log2: float


class Arguments(NamedTuple):
    """All arguments of a launch but the constants, in the kernel's order."""

    inputs: Inputs
    sent: SentDescriptors
    outputs: Outputs
    words: Words
    strides: Strides
    sizes: Sizes
    further: FurtherSpans
    pieces: Pieces
    load: Load
    destinations: Destinations
    finish: Finish

    def flat(self) -> Iterator[Any]:
        """Return the members of all groups, one after the other."""
        return chain.from_iterable(self)


# What device code alone passes on as groups.


class Rings(NamedTuple):
    """Shared memory through which the producer feeds the consumers, with the barriers of each ring."""

    q: Value
    k: Value
    v: Value
    q_full: Value
    q_empty: Value
    k_full: Value
    k_empty: Value
    v_full: Value
    v_empty: Value
    announced: Value  # int32 per place of q: the index of the query tile there


class Output(NamedTuple):
    """Members of `Outputs`, `Strides` and `Finish` that say where results go."""

    desc: Value
    ptr: Value
    lse_ptr: Value
    final_ptr: Value
    stride_b: Value
    stride_h: Value
    stride_l: Value
    stride_lse: Value
    done_start: Value
    done_stop: Value


class Awaited(NamedTuple):
    """Members of `Words` and `Pieces` about further spans; words and taken are tuples of three."""

    words: Value
    taken: Value
    heads_per_piece: Value
    pieces: Value
    waited_ptr: Value


class Counters(NamedTuple):
    """Members of `Words` with which programs count."""

    next_ptr: Value
    counts_ptr: Value
    took_ptr: Value
