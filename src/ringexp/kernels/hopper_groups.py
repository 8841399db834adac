"""Groups of the Hopper kernel's arguments. The host fills them in, and device code passes them on.

The kernel takes the members one by one, in the order of `Arguments`, since Triton compiles again for every
new integer in a tuple. Members have the names of the kernel's parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

# TMA descriptors and integers, for which triton has types of its own while it compiles.
Descriptor = Any
Value = Any


class Inputs(NamedTuple):
    """TMA descriptors of q [B, H, Lq, D] and of the keys and values [B, H / group, Lk, D] of all spans.

    A tile of q has ROWS rows, a tile of keys or values BLOCK_N. k_desc and v_desc are the first span, which
    all query rows see. k1_desc and so on are further spans, None if there are fewer.
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
    """TMA descriptors, with tiles of ROWS rows, of the keys and values to send and of their destinations."""

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
        out_ptr: out, D contiguous, with the strides of `Strides`.
        lse_ptr: the log-sum-exps [B, H, Lq].
        final_ptr: receives rows that no later block covers, with out's strides; see `hopper_epilogue.write`.
    """

    out_desc: Descriptor
    out_ptr: Tensor
    lse_ptr: Tensor
    final_ptr: Tensor


class Words(NamedTuple):
    """Words of device memory with which programs count and wait. Those that a launch does not use are None.

    Attributes:
        next_ptr: three counters, 0 before and after the launch: query tiles begun, microseconds waited by all
            programs, and programs that have finished.
        words1_ptr: flags of the first further span, WORD apart, one per piece. The heads of a piece are
            loaded once its flag is not 0. The kernel sets the flags to 0 when it has read everything.
        words2_ptr: the flags of the second further span.
        words3_ptr: the flags of the third further span.
        waited_ptr: receives the average time that a program waited, in microseconds.
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
    """Strides of out by sequence, head and row, and of the log-sum-exps by head."""

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
        band: the number of heads, over the batch, whose tiles alternate; see `hopper_kernel._locate`. It
            divides the number of all heads.
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
    """Further spans: the first query row that sees each of them, a multiple of a tile, and its key tiles."""

    from1: int
    tiles1: int
    from2: int
    tiles2: int
    from3: int
    tiles3: int


class Pieces(NamedTuple):
    """The pieces of whole heads in which further spans arrive, and in which keys and values are sent.

    Attributes:
        heads_per_piece: key/value heads per piece.
        pieces: the number of pieces.
        taken1: the address of the word that the kernel sets to 1 once it has read the first further span.
            0: the span was there before, and its flags stay as they are.
        taken2: the same for the second further span.
        taken3: the same for the third further span.
    """

    heads_per_piece: int
    pieces: int
    taken1: int
    taken2: int
    taken3: int


class Load(NamedTuple):
    """The tiles that couriers send, see `hopper_courier`.

    Attributes:
        runs: the number of all runs of tiles.
        runs_per_piece: runs per piece.
        runs_per_head: runs of the keys of one head, and of its values.
        sent_tiles: tiles per head for the destination that gets most.
        couriers: programs that send after the first runs.
    """

    runs: Value
    runs_per_piece: Value
    runs_per_head: Value
    sent_tiles: Value
    couriers: Value


class Destinations(NamedTuple):
    """Per destination the addresses of its words (`contract.Destination`), and its tiles per head."""

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
    """The end of the computation: rows [done_start, done_stop) go to final_ptr; softmax_scale * log2(e)."""

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
        """Yield the members of all groups in order."""
        return chain.from_iterable(self)


# Groups that only device code uses.


class Rings(NamedTuple):
    """Rings of tiles in shared memory, which the producer fills for the consumers, and their barriers."""

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
    """Members of `Outputs`, `Strides` and `Finish` that state where results go."""

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
