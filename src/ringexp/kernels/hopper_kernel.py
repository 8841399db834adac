"""The Gluon device code of one attention block on Hopper (sm_90); `hopper_launch` launches it. Needs triton.

It is FlashAttention-3 (Shah et al., 2024), warp specialised. One producer warp loads key and value tiles into
two rings in shared memory by TMA. Each consumer is a warpgroup with 64 query rows of its own. A consumer
starts the scores of the next tile, then the output product of the current tile, and computes the softmax of
the next tile while that product runs. Key tiles are visited from the last to the first, so only the tiles
visited first need a mask.

A `full` barrier completes when a tile has been loaded, an `empty` barrier when every consumer has read the
tile. A ring counts its tiles from 0: tile c is in stage c % STAGES and completes phase (c // STAGES) % 2 of
its barriers. Every consumer has its own ring of query tiles. If CAUSAL, the ring has two tiles, so that the
next tile is loaded when a short tile ends; otherwise it has one. Key tiles of several spans follow each other
as if they were one span; only the producer distinguishes them. If keys and values go to other GPUs, one more
warp sends them: see `hopper_courier`.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ringexp.kernels import hopper_tiles
from ringexp.kernels.hopper_courier import (
    WORD,
    allocate_buffers,
    carry,
    leave,
    load_tile,
    meet,
    store_tile,
    wait_for,
)
from ringexp.kernels.hopper_epilogue import write, write_lse
from ringexp.kernels.hopper_groups import Awaited, Counters, Load, Output, Rings, Sizes
from ringexp.kernels.hopper_softmax import mask, pin, settle, softmax

ROWS = gl.constexpr(hopper_tiles.ROWS)
BLOCK_N = gl.constexpr(hopper_tiles.BLOCK_N)
STAGES = gl.constexpr(2)  # key tiles in shared memory, and as many value tiles


@gluon.jit
def _locate(index, sizes, CONSUMERS: gl.constexpr):
    """Return batch, head and first row of query tile `index`.

    Heads, over the batch, are computed in bands of `band` heads. Within a band the last tiles of all heads
    come first, since they see the most keys.
    """
    place = index % (sizes.num_tiles * sizes.band)
    tile = sizes.num_tiles - 1 - place // sizes.band
    head = index // (sizes.num_tiles * sizes.band) * sizes.band + place % sizes.band
    return head // sizes.num_heads, head % sizes.num_heads, tile * CONSUMERS * ROWS


@gluon.jit
def _tiles_of_span(
    first_row, sizes, spans, SPAN: gl.constexpr, CAUSAL: gl.constexpr, CONSUMERS: gl.constexpr
):
    """Return the number of a span's key tiles that the query tile at first_row sees; 0 or all if further."""
    if SPAN == 0:
        seen = gl.minimum(first_row + CONSUMERS * ROWS, sizes.kv_len) if CAUSAL else sizes.kv_len
        tiles = gl.cdiv(seen, BLOCK_N)
    else:
        tiles = gl.where(first_row >= spans[2 * SPAN - 2], spans[2 * SPAN - 1], 0)
    return tiles


@gluon.jit
def _tiles(first_row, sizes, spans, SPANS: gl.constexpr, CAUSAL: gl.constexpr, CONSUMERS: gl.constexpr):
    """Return the numbers of key tiles that the query tile at first_row sees, in the first span and in all."""
    first = _tiles_of_span(first_row, sizes, spans, 0, CAUSAL, CONSUMERS)
    tiles = first
    for span in gl.static_range(1, SPANS):
        tiles += _tiles_of_span(first_row, sizes, spans, span, CAUSAL, CONSUMERS)
    return first, tiles


@gluon.jit
def _stage(count):
    """Return stage and phase of tile `count` of a ring."""
    return count % STAGES, (count // STAGES) & 1


@gluon.jit
def _query_stage(turn, consumer, CAUSAL: gl.constexpr):
    """Return the place of a consumer's query tile number `turn` among all places, and its phase."""
    QUERY_STAGES: gl.constexpr = 2 if CAUSAL else 1
    return consumer * QUERY_STAGES + turn % QUERY_STAGES, (turn // QUERY_STAGES) & 1


@gluon.jit
def _load_step(descs, batch, kv_head, first_row, step, sizes, spans, awaited, full, tile,
               SPANS: gl.constexpr, AWAIT: gl.constexpr, CAUSAL: gl.constexpr,
               CONSUMERS: gl.constexpr):  # fmt: skip
    """Start to load the tile of keys or values that a query tile sees at `step`.

    The steps go through the spans in order, and through each span from its last tile to its first. With AWAIT
    the load waits until the heads of a further span have arrived. Returns the time that it waited, in us.
    """
    start = step * 0
    waited = step * 0
    for span in gl.static_range(SPANS):
        tiles = _tiles_of_span(first_row, sizes, spans, span, CAUSAL, CONSUMERS)
        if (step >= start) & (step < start + tiles):
            if AWAIT and span > 0:  # noqa: SIM102, as one is known when this is compiled
                if step == start:
                    waited += wait_for(awaited.words[span - 1] + kv_head // awaited.heads_per_piece * WORD)
            load_tile(descs[span], [batch, kv_head, (start + tiles - 1 - step) * BLOCK_N, 0], full, tile)
        start += tiles
    return waited


@gluon.jit
def _produce(q_desc, k_descs, v_descs, rings, counters, awaited, sizes, spans, SPANS: gl.constexpr,
             AWAIT: gl.constexpr, SENDS: gl.constexpr, CAUSAL: gl.constexpr,
             CONSUMERS: gl.constexpr):  # fmt: skip
    """Load tiles for the consumers: the work of the producer warp.

    It begins the next query tile when it has loaded everything for the one before. Keys are loaded one tile
    ahead of values, the order in which the consumers need them.
    """
    HEAD_DIM: gl.constexpr = q_desc.block_shape[3]
    KV_BYTES: gl.constexpr = BLOCK_N * HEAD_DIM * 2
    Q_BYTES: gl.constexpr = ROWS * HEAD_DIM * 2
    loaded = 0
    turn = 0
    total = _after_predecessor(sizes.total)
    index = gl.atomic_add(counters.next_ptr, 1)
    while index < total:
        batch, head, first_row = _locate(index, sizes, CONSUMERS)
        _, num_keys = _tiles(first_row, sizes, spans, SPANS, CAUSAL, CONSUMERS)
        kv_head = head // sizes.group
        for consumer in gl.static_range(CONSUMERS):
            place, phase = _query_stage(turn, consumer, CAUSAL)
            mbarrier.wait(rings.q_empty.index(place), phase ^ 1)
            _announce(rings.announced, place, index)
            mbarrier.expect(rings.q_full.index(place), Q_BYTES)
            load_tile(q_desc, [batch, head, first_row + consumer * ROWS, 0], rings.q_full.index(place),
                      rings.q.index(place))  # fmt: skip
        for step in range(num_keys + 1):
            if step < num_keys:
                stage, phase = _stage(loaded + step)
                mbarrier.wait(rings.k_empty.index(stage), phase ^ 1)
                mbarrier.expect(rings.k_full.index(stage), KV_BYTES)
                waited = _load_step(k_descs, batch, kv_head, first_row, step, sizes, spans, awaited,
                                    rings.k_full.index(stage), rings.k.index(stage), SPANS, AWAIT,
                                    CAUSAL, CONSUMERS)  # fmt: skip
                if AWAIT:  # noqa: SIM102, as above
                    if waited > 0:
                        gl.atomic_add(counters.next_ptr + 1, waited)
            if step > 0:
                stage, phase = _stage(loaded + step - 1)
                mbarrier.wait(rings.v_empty.index(stage), phase ^ 1)
                mbarrier.expect(rings.v_full.index(stage), KV_BYTES)
                _load_step(v_descs, batch, kv_head, first_row, step - 1, sizes, spans, awaited,
                           rings.v_full.index(stage), rings.v.index(stage), SPANS, False, CAUSAL,
                           CONSUMERS)  # fmt: skip
        loaded += num_keys
        turn += 1
        index = gl.atomic_add(counters.next_ptr, 1)
    _end(rings, counters, awaited, index, total, loaded, turn, SPANS, AWAIT, SENDS, CAUSAL, CONSUMERS)


@gluon.jit
def _end(rings, counters, awaited, index, total, loaded, turn, SPANS: gl.constexpr, AWAIT: gl.constexpr,
         SENDS: gl.constexpr, CAUSAL: gl.constexpr, CONSUMERS: gl.constexpr):  # fmt: skip
    """Tell the consumers that there is no further tile. The last program sets the counters to 0."""
    for consumer in gl.static_range(CONSUMERS):
        place, phase = _query_stage(turn, consumer, CAUSAL)
        mbarrier.wait(rings.q_empty.index(place), phase ^ 1)
        _announce(rings.announced, place, index)
        mbarrier.arrive(rings.q_full.index(place))
    if AWAIT or SENDS > 0:
        for count in gl.static_range(STAGES):  # wait until every load has completed
            stage, phase = _stage(loaded + count)
            mbarrier.wait(rings.k_empty.index(stage), phase ^ 1)
            mbarrier.wait(rings.v_empty.index(stage), phase ^ 1)
        leave(counters, awaited, SPANS, AWAIT, SENDS)
    elif index == total + gl.num_programs(0) - 1:  # every program has asked for a tile in vain
        gl.store(counters.next_ptr, 0)


@gluon.jit
def _send(descs, buffers, landed, counters, awaited, load, destinations, SPANS: gl.constexpr,
          AWAIT: gl.constexpr, SENDS: gl.constexpr):  # fmt: skip
    """Send keys and values to other GPUs: the work of the courier warp."""
    runs = _after_predecessor(load.runs)
    carry(descs, buffers, landed, counters, runs, load, awaited.heads_per_piece, destinations, SENDS)
    leave(counters, awaited, SPANS, AWAIT, SENDS)


@gluon.jit
def _after_predecessor(x):
    """Return x, an int32, once the kernel before this one on the stream has ended.

    This kernel may start before that. From this call on the next kernel may start likewise, on SMs with room.
    """
    ASM: gl.constexpr = "griddepcontrol.wait; griddepcontrol.launch_dependents; mov.b32 $0, $1;"
    return gl.inline_asm_elementwise(ASM, "=r,r", [x], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _announce(announced, place, index):
    """Write the index of the next query tile; its consumer reads it once the tile's barrier completes."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    announced.index(place).store(gl.full([1], index, gl.int32, LAYOUT))
    meet()  # one thread continues; any lane may have stored, so all must meet first


@gluon.jit
def _announced(announced, place):
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    return gl.sum(announced.index(place).load(LAYOUT), 0)


@gluon.jit
def _start_scores(q_tile, rings, count):
    """Start q @ k.T for key tile `count` of the ring once it is loaded. Return [ROWS, BLOCK_N] float32."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    HEAD_DIM: gl.constexpr = q_tile.shape[1]
    stage, phase = _stage(count)
    mbarrier.wait(rings.k_full.index(stage), phase)
    keys = rings.k.index(stage).reshape([BLOCK_N, HEAD_DIM]).permute([1, 0])
    zero = gl.zeros([ROWS, BLOCK_N], gl.float32, S_LAYOUT)
    return warpgroup_mma(q_tile, keys, zero, use_acc=False, is_async=True)


@gluon.jit
def _start_output(probs, acc, rings, count):
    """Start acc + probs @ v for value tile `count` of the ring once it is loaded."""
    HEAD_DIM: gl.constexpr = acc.shape[1]
    stage, phase = _stage(count)
    mbarrier.wait(rings.v_full.index(stage), phase)
    values = rings.v.index(stage).reshape([BLOCK_N, HEAD_DIM])
    return warpgroup_mma(probs, values, acc, is_async=True)


@gluon.jit
def _release(empty, stage):
    """Signal that this consumer has read a stage. All four warps must have read it, so they meet first."""
    meet()
    mbarrier.arrive(empty.index(stage))


@gluon.jit
def _visit_keys(acc, probs, row_max, row_sum, shrink, count, q_tile, rings, scale_log2, num_keys):
    """Add the steps from 1 on, which need no mask, to the running statistics.

    `count` is the ring count of step 0. On entry and exit the softmax is one step ahead of acc: probs and
    shrink belong to the step before and have not been applied yet.
    """
    O_LAYOUT: gl.constexpr = acc.type.layout
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    for step in range(1, num_keys):
        scores = _start_scores(q_tile, rings, count + step)
        acc = acc * gl.convert_layout(pin(shrink), gl.SliceLayout(1, O_LAYOUT))[:, None]
        acc_token = _start_output(probs, acc, rings, count + step - 1)
        scores = warpgroup_mma_wait(1, deps=[scores])
        _release(rings.k_empty, (count + step) % STAGES)
        wide, row_max, shrink, sums = softmax(scores, row_max, scale_log2)
        row_sum = row_sum * gl.convert_layout(shrink, gl.SliceLayout(1, sums.type.layout))[:, None] + sums
        row_sum = settle(row_sum)
        # The wait includes wide, so that probs, an operand of the product, is not overwritten before it ends.
        acc, wide = warpgroup_mma_wait(0, deps=[acc_token, wide])
        _release(rings.v_empty, (count + step - 1) % STAGES)
        probs = gl.convert_layout(wide.to(rings.v.dtype), P_LAYOUT)
    return acc, probs, row_max, row_sum, shrink


@gluon.jit
def _consume(rings, sizes, spans, output, scale_log2, SPANS: gl.constexpr, CAUSAL: gl.constexpr,
             MERGE: gl.constexpr, FINAL: gl.constexpr, CONSUMERS: gl.constexpr,
             CONSUMER: gl.constexpr):  # fmt: skip
    """Compute ROWS rows of each query tile, from row CONSUMER * ROWS on: the work of one consumer warpgroup.

    If TMA writes a result, it reads it from the memory that held the queries, while the next tile is
    computed. The memory is free only after that, so there must be two query tiles, as with CAUSAL. TMA cannot
    merge.
    """
    BY_TMA: gl.constexpr = output.desc is not None
    if BY_TMA:
        gl.static_assert(CAUSAL and not MERGE and not FINAL)
    HEAD_DIM: gl.constexpr = rings.q.shape[4]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    count = 0
    turn = 0
    total = _after_predecessor(sizes.total)
    place, phase = _query_stage(turn, CONSUMER, CAUSAL)
    mbarrier.wait(rings.q_full.index(place), phase)
    index = _announced(rings.announced, place)
    while index < total:
        batch, head, tile_row = _locate(index, sizes, CONSUMERS)
        first_keys, num_keys = _tiles(tile_row, sizes, spans, SPANS, CAUSAL, CONSUMERS)
        first_row = tile_row + CONSUMER * ROWS
        q_tile = rings.q.index(place).reshape([ROWS, HEAD_DIM])
        acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, O_LAYOUT)
        row_max = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S_LAYOUT))

        scores = _start_scores(q_tile, rings, count)
        scores = warpgroup_mma_wait(0, deps=[scores])
        _release(rings.k_empty, count % STAGES)
        if BY_TMA:
            _release_queries_of_last_turn(rings.q_empty, turn, CONSUMER, CAUSAL)
        scores = mask(scores, first_row, (first_keys - 1) * BLOCK_N, sizes.kv_len, CAUSAL)
        wide, row_max, shrink, row_sum = softmax(scores, row_max, scale_log2)
        probs = gl.convert_layout(wide.to(rings.v.dtype), P_LAYOUT)
        acc, probs, row_max, row_sum, shrink = _visit_keys(
            acc, probs, row_max, row_sum, shrink, count, q_tile, rings, scale_log2, num_keys)  # fmt: skip
        if not BY_TMA:
            _release(rings.q_empty, place)
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, O_LAYOUT))[:, None]
        acc = _start_output(probs, acc, rings, count + num_keys - 1)
        acc = warpgroup_mma_wait(0, deps=[acc])
        _release(rings.v_empty, (count + num_keys - 1) % STAGES)
        count += num_keys

        _finish(acc, row_max, row_sum, output, batch, head, first_row, sizes, rings.q.index(place),
                MERGE, FINAL)  # fmt: skip
        turn += 1
        place, phase = _query_stage(turn, CONSUMER, CAUSAL)
        mbarrier.wait(rings.q_full.index(place), phase)
        index = _announced(rings.announced, place)
    if BY_TMA:
        tma.store_wait(0)


@gluon.jit
def _release_queries_of_last_turn(q_empty, turn, CONSUMER: gl.constexpr, CAUSAL: gl.constexpr):
    """Free the memory from which TMA wrote the result of the turn before."""
    if turn > 0:
        tma.store_wait(0)
        last, _ = _query_stage(turn - 1, CONSUMER, CAUSAL)
        _release(q_empty, last)


@gluon.jit
def _finish(acc, row_max, row_sum, output, batch, head, first_row, sizes, q_tile, MERGE: gl.constexpr,
            FINAL: gl.constexpr):  # fmt: skip
    """Write the result of one query tile, or let TMA write it from the memory that held the queries."""
    row_max = gl.convert_layout(row_max, gl.SliceLayout(1, acc.type.layout))
    row_sum = gl.convert_layout(gl.sum(row_sum, 1), gl.SliceLayout(1, acc.type.layout))
    head_index = batch * sizes.num_heads + head
    start = batch.to(gl.int64) * output.stride_b + head.to(gl.int64) * output.stride_h
    lse_base = output.lse_ptr + head_index.to(gl.int64) * output.stride_lse
    if output.desc is not None:
        write_lse(row_max + gl.log2(row_sum), lse_base, first_row, sizes.q_len)
        acc = acc * (1.0 / row_sum)[:, None]
        q_tile.reshape([acc.shape[0], acc.shape[1]]).store(acc.to(q_tile.dtype))
        fence_async_shared()
        meet()
        store_tile(output.desc, [batch, head, first_row, 0], q_tile)
    else:
        write(acc, row_max, row_sum, output.ptr + start, output.final_ptr + start, output.stride_l, lse_base,
              first_row, sizes.q_len, output.done_start, output.done_stop, MERGE, FINAL)  # fmt: skip


@gluon.jit
def _allocate(q_desc, k_desc, v_desc, QUERY_TILES: gl.constexpr, CONSUMERS: gl.constexpr):
    """Allocate and initialise the rings in shared memory, their barriers, and the words for tile indices."""
    dtype: gl.constexpr = q_desc.dtype
    HEAD_DIM: gl.constexpr = q_desc.block_shape[3]
    q_mem = gl.allocate_shared_memory(dtype, [QUERY_TILES, 1, 1, ROWS, HEAD_DIM], q_desc.layout)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, HEAD_DIM], k_desc.layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, HEAD_DIM], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [QUERY_TILES, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [QUERY_TILES, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    announced = gl.allocate_shared_memory(gl.int32, [QUERY_TILES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(QUERY_TILES):
        mbarrier.init(q_full.index(i), 1)
        mbarrier.init(q_empty.index(i), 1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), 1)
        mbarrier.init(v_full.index(i), 1)
        mbarrier.init(k_empty.index(i), CONSUMERS)
        mbarrier.init(v_empty.index(i), CONSUMERS)
    return Rings(q_mem, k_ring, v_ring, q_full, q_empty, k_full, k_empty, v_full, v_empty, announced)


@gluon.jit(do_not_specialize=["num_tiles", "total", "num_heads", "band", "group", "q_len", "kv_len",
                              "heads_per_piece", "pieces", "done_start", "done_stop", "from1", "tiles1",
                              "from2", "tiles2", "from3", "tiles3", "taken1", "taken2", "taken3", "runs",
                              "runs_per_piece", "runs_per_head", "sent_tiles", "couriers", "free1", "ready1",
                              "sent1", "free2", "ready2", "sent2", "free3", "ready3", "sent3"])  # fmt: skip
def attention_block(q_desc, k_desc, v_desc, k1_desc, v1_desc, k2_desc, v2_desc, k3_desc, v3_desc,
                    ks_desc, vs_desc, kto1_desc, vto1_desc, kto2_desc, vto2_desc, kto3_desc,
                    vto3_desc, out_desc, out_ptr, lse_ptr, final_ptr, next_ptr, words1_ptr,
                    words2_ptr, words3_ptr, waited_ptr, counts_ptr, took_ptr, stride_ob, stride_oh,
                    stride_ol, stride_lse, num_tiles, total, num_heads, band, group, q_len, kv_len,
                    from1, tiles1, from2, tiles2, from3, tiles3, heads_per_piece, pieces, taken1,
                    taken2, taken3, runs, runs_per_piece, runs_per_head, sent_tiles, couriers, free1,
                    ready1, sent1, free2, ready2, sent2, free3, ready3, sent3, done_start,
                    done_stop, scale_log2, SPANS: gl.constexpr, AWAIT: gl.constexpr,
                    SENDS: gl.constexpr, CAUSAL: gl.constexpr, MERGE: gl.constexpr,
                    FINAL: gl.constexpr, CONSUMERS: gl.constexpr, CONSUMER_REGS: gl.constexpr,
                    PRODUCER_REGS: gl.constexpr):  # fmt: skip
    """Compute query tiles, each against all keys that it sees. `hopper_groups` documents the arguments."""
    QUERY_TILES: gl.constexpr = CONSUMERS * (2 if CAUSAL else 1)
    rings = _allocate(q_desc, k_desc, v_desc, QUERY_TILES, CONSUMERS)
    sizes = Sizes(num_tiles, total, num_heads, band, group, q_len, kv_len)
    output = Output(out_desc, out_ptr, lse_ptr, final_ptr, stride_ob, stride_oh, stride_ol, stride_lse,
                    done_start, done_stop)  # fmt: skip
    awaited = Awaited((words1_ptr, words2_ptr, words3_ptr), (taken1, taken2, taken3), heads_per_piece, pieces,
                      waited_ptr)  # fmt: skip
    counters = Counters(next_ptr, counts_ptr, took_ptr)
    spans = (from1, tiles1, from2, tiles2, from3, tiles3)
    k_descs, v_descs = (k_desc, k1_desc, k2_desc, k3_desc), (v_desc, v1_desc, v2_desc, v3_desc)
    # An assigned tuple turns its constexprs into tensors, so the calls below list them one by one.
    if SENDS > 0:
        gl.static_assert(CONSUMERS == 2)
        buffers, landed = allocate_buffers(ks_desc)
        descs = (ks_desc, vs_desc, (kto1_desc, kto2_desc, kto3_desc), (vto1_desc, vto2_desc, vto3_desc))
        load = Load(runs, runs_per_piece, runs_per_head, sent_tiles, couriers)
        destinations = ((free1, ready1, sent1), (free2, ready2, sent2), (free3, ready3, sent3))
        gl.warp_specialize([
            (_consume, (rings, sizes, spans, output, scale_log2, SPANS, CAUSAL, MERGE, FINAL, CONSUMERS, 0)),
            (_consume, (rings, sizes, spans, output, scale_log2, SPANS, CAUSAL, MERGE, FINAL, CONSUMERS, 1)),
            (_produce, (q_desc, k_descs, v_descs, rings, counters, awaited, sizes, spans, SPANS, AWAIT, SENDS,
                        CAUSAL, CONSUMERS)),
            (_send, (descs, buffers, landed, counters, awaited, load, destinations, SPANS, AWAIT, SENDS)),
        ], [4, 1, 1], [CONSUMER_REGS, PRODUCER_REGS, PRODUCER_REGS])  # fmt: skip
    elif CONSUMERS == 2:
        gl.warp_specialize([
            (_consume, (rings, sizes, spans, output, scale_log2, SPANS, CAUSAL, MERGE, FINAL, CONSUMERS, 0)),
            (_consume, (rings, sizes, spans, output, scale_log2, SPANS, CAUSAL, MERGE, FINAL, CONSUMERS, 1)),
            (_produce, (q_desc, k_descs, v_descs, rings, counters, awaited, sizes, spans, SPANS, AWAIT, SENDS,
                        CAUSAL, CONSUMERS)),
        ], [4, 1], [CONSUMER_REGS, PRODUCER_REGS])  # fmt: skip
    else:
        gl.static_assert(CONSUMERS == 3)
        gl.warp_specialize([
            (_consume, (rings, sizes, spans, output, scale_log2, SPANS, CAUSAL, MERGE, FINAL, CONSUMERS, 0)),
            (_consume, (rings, sizes, spans, output, scale_log2, SPANS, CAUSAL, MERGE, FINAL, CONSUMERS, 1)),
            (_consume, (rings, sizes, spans, output, scale_log2, SPANS, CAUSAL, MERGE, FINAL, CONSUMERS, 2)),
            (_produce, (q_desc, k_descs, v_descs, rings, counters, awaited, sizes, spans, SPANS, AWAIT, SENDS,
                        CAUSAL, CONSUMERS)),
        ], [4, 4, 1], [CONSUMER_REGS, CONSUMER_REGS, PRODUCER_REGS])  # fmt: skip
