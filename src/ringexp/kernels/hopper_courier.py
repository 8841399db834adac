"""Gluon device code on Hopper that sends keys and values to other GPUs; `hopper_kernel` calls it.

One warp of each program, the courier, sends tiles of the rank's own keys and values to other ranks while the
other warps compute. TMA copies a tile into shared memory, and from there over NVLink into the other ranks'
memory. Words that both GPUs can reach, 0 or 1, state what has arrived (`contract`).

A run is a number of tiles of the keys or the values of one head. A piece is the heads that share one word.
Counters in this GPU's memory state the next run to send, the runs of pieces that are complete, and the runs
sent per piece. They also tell a program that it is the last one.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ringexp.kernels import hopper_counters, hopper_tiles

WORD = gl.constexpr(hopper_counters.WORD)
WORD_BYTES = gl.constexpr(4 * hopper_counters.WORD)
RUN = gl.constexpr(hopper_tiles.RUN)
COURIERS = gl.constexpr(hopper_tiles.MOST_COURIERS)
BURST = gl.constexpr(96)  # first runs; more programs send them, so that the first heads arrive early
# Places among the counters: the next run, the runs of complete pieces, and from there on the runs per piece.
_NEXT = gl.constexpr(0)
_CARRIED = gl.constexpr(1)
_PIECES = gl.constexpr(2)

# triton 3.6 has other names for these functions than later versions.
load_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
store_tile = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit
def wait_for(word):
    """Wait until the word is not 0. TMA loads after this call read what was written before the word was set.

    Returns the time that it waited in us, 0 if the word was set already. After 5 minutes it traps, since the
    word will never be set.
    """
    SPIN: gl.constexpr = """{
        .reg .pred p; .reg .u32 word; .reg .u64 began, passed;
        mov.u64 began, %globaltimer;
        mov.u64 passed, 0;
        again: ld.acquire.sys.global.u32 word, [$1];
        setp.ne.u32 p, word, 0;
        vote.sync.any.pred p, p, 0xffffffff;
        @p bra.uni there;
        mov.u64 passed, %globaltimer;
        sub.u64 passed, passed, began;
        setp.gt.u64 p, passed, 300000000000;
        @p trap;
        bra.uni again;
        there: fence.proxy.async;
        div.u64 passed, passed, 1000;
        cvt.u32.u64 $0, passed;
    }"""
    return gl.inline_asm_elementwise(SPIN, "=r,l", [word], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _until_set(word):
    """Wait until the word is set, untimed and without a limit. A trap makes ptxas lengthen other loops."""
    there = _is_set(word)
    while there == 0:
        there = _is_set(word)


@gluon.jit
def _is_set(word):
    ASM: gl.constexpr = """{
        .reg .pred p;
        ld.acquire.sys.global.u32 $0, [$1];
        setp.ne.u32 p, $0, 0;
        vote.sync.any.pred p, p, 0xffffffff;
        selp.u32 $0, 1, 0, p;
    }"""
    return gl.inline_asm_elementwise(ASM, "=r,l", [word], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _set(word, VALUE: gl.constexpr):
    """Set the word to 0 or 1. Whoever reads it also sees what this warp read and wrote before.

    One lane stores, the one of scalar stores. A second store might overwrite the answer of a reader.
    """
    STORE: gl.constexpr = """{
        .reg .pred first; .reg .u32 lane, value;
        mov.u32 lane, %laneid;
        setp.eq.u32 first, lane, 0;
        cvt.u32.u64 value, $2;
        @first st.release.sys.global.u32 [$1], value;
        mov.u32 $0, 0;
    }"""
    value = word * 0 + VALUE
    gl.inline_asm_elementwise(STORE, "=r,l,l", [word, value], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _written(x):
    """Return x, an int32, once all TMA stores of this warp are in memory and visible to every reader."""
    ASM: gl.constexpr = "cp.async.bulk.wait_group 0; fence.proxy.async; fence.acq_rel.sys; mov.b32 $0, $1;"
    x = gl.inline_asm_elementwise(ASM, "=r,r", [x], gl.int32, is_pure=False, pack=1)
    meet()
    return x


@gluon.jit
def _now(x):
    """Return the time in ns, modulo 2^32. x is any int32."""
    ASM: gl.constexpr = "mov.u32 $0, %globaltimer_lo;"
    return gl.inline_asm_elementwise(ASM, "=r,r", [x], gl.int32, is_pure=False, pack=1)


@gluon.jit
def allocate_buffers(desc):
    """Allocate shared memory for two tiles, and barriers that complete when the tiles have been loaded."""
    ROWS: gl.constexpr = desc.block_shape[2]
    HEAD_DIM: gl.constexpr = desc.block_shape[3]
    buffers = gl.allocate_shared_memory(desc.dtype, [2, 1, 1, ROWS, HEAD_DIM], desc.layout)
    landed = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(landed.index(i), 1)
    return buffers, landed


@gluon.jit
def carry(descs, buffers, landed, counters, runs, load, heads_per_piece, destinations, SENDS: gl.constexpr):
    """Send runs of tiles until none is left, in the order of the heads.

    A tile is loaded while the tile before is stored, so there are two buffers. COURIERS programs send the
    first BURST runs, and load.couriers programs send the others.

    Args:
        descs: TMA descriptors of the keys, the values, the places of the keys and the places of the values.
        buffers: shared memory for two tiles.
        landed: the barriers of the buffers.
        counters: a group `Counters`.
        runs: the number of all runs.
        load: a group `Load`.
        heads_per_piece: heads that share one word.
        destinations: per destination the addresses of its words `free` and `ready`, and its tiles per head.
        SENDS: the number of destinations.
    """
    counts_ptr = counters.counts_ptr
    run = runs
    if gl.program_id(0) < COURIERS:
        run = gl.atomic_add(counts_ptr + _NEXT, 1)
    if run < runs:
        for number in gl.static_range(SENDS):
            _until_set(destinations[number][0])
    if run == 0:
        gl.store(counters.took_ptr, _now(run))
    turn = 0
    while run < runs:
        piece = run // load.runs_per_piece
        turn += _carry_run(descs, buffers, landed, run, turn, load, heads_per_piece, destinations, SENDS)
        following = runs
        if (gl.program_id(0) < load.couriers) | (run < BURST):
            following = gl.atomic_add(counts_ptr + _NEXT, 1)
        run = _written(following)
        if gl.atomic_add(counts_ptr + _PIECES + piece, 1) == load.runs_per_piece - 1:
            if gl.atomic_add(counts_ptr + _CARRIED, load.runs_per_piece) == runs - load.runs_per_piece:
                # No program reads `free` any more, and no rank sets it again before it has seen all pieces.
                for number in gl.static_range(SENDS):
                    _set(destinations[number][0], False)
                gl.store(counters.took_ptr, _now(piece) - gl.load(counters.took_ptr))
            for number in gl.static_range(SENDS):
                _set(destinations[number][1] + piece * WORD_BYTES, True)


@gluon.jit
def _carry_run(descs, buffers, landed, run, turn, load, heads_per_piece, destinations, SENDS: gl.constexpr):
    """Send the tiles of one run, and return their number. `turn` is the number of tiles sent before."""
    k_desc, v_desc, k_outs, v_outs = descs
    ROWS: gl.constexpr = k_desc.block_shape[2]
    BYTES: gl.constexpr = ROWS * k_desc.block_shape[3] * 2
    piece = run // load.runs_per_piece
    rest = run % load.runs_per_piece // load.runs_per_head
    of_keys = rest % 2 == 0
    head = piece * heads_per_piece + rest // 2 % heads_per_piece
    batch = rest // 2 // heads_per_piece
    first = run % load.runs_per_head * RUN
    length = gl.minimum(load.sent_tiles - first, RUN)
    for step in range(length + 1):
        if step < length:
            place = (turn + step) & 1
            _left()
            mbarrier.expect(landed.index(place), BYTES)
            if of_keys:
                load_tile(k_desc, [batch, head, (first + step) * ROWS, 0], landed.index(place),
                          buffers.index(place))  # fmt: skip
            else:
                load_tile(v_desc, [batch, head, (first + step) * ROWS, 0], landed.index(place),
                          buffers.index(place))  # fmt: skip
        if step > 0:
            going = turn + step - 1
            tile = first + step - 1
            mbarrier.wait(landed.index(going & 1), (going >> 1) & 1)
            for number in gl.static_range(SENDS):
                if tile < destinations[number][2]:
                    if of_keys:
                        store_tile(k_outs[number], [batch, head, tile * ROWS, 0], buffers.index(going & 1))
                    else:
                        store_tile(v_outs[number], [batch, head, tile * ROWS, 0], buffers.index(going & 1))
    return length


@gluon.jit
def _left():
    """Wait until the TMA stores of this warp have read all their tiles from shared memory."""
    ASM: gl.constexpr = "cp.async.bulk.wait_group.read 0; mov.b32 $0, 0;"
    gl.inline_asm_elementwise(ASM, "=r", [], gl.int32, is_pure=False, pack=1)
    meet()


@gluon.jit
def leave(counters, awaited, SPANS: gl.constexpr, AWAIT: gl.constexpr, SENDS: gl.constexpr):
    """Count this producer or courier as finished. The last one of all programs cleans up.

    It sets counters and words to 0, and tells the senders that their shards have been read.
    """
    LEAVING: gl.constexpr = 2 if SENDS > 0 else 1
    next_ptr = counters.next_ptr
    if gl.atomic_add(next_ptr + 2, 1) == LEAVING * gl.num_programs(0) - 1:
        if AWAIT:
            gl.store(awaited.waited_ptr, gl.load(next_ptr + 1) // gl.num_programs(0))
            for span in gl.static_range(1, SPANS):
                if awaited.taken[span - 1] != 0:
                    for piece in range(awaited.pieces):
                        gl.store(awaited.words[span - 1] + piece * WORD, 0)
                    _set(awaited.taken[span - 1].to(gl.int64), True)
        for place in range(3):
            gl.store(next_ptr + place, 0)
        if SENDS > 0:
            for place in range(_PIECES + awaited.pieces):
                gl.store(counters.counts_ptr + place, 0)
