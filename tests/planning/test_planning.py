"""Properties of spans, layouts, partitioners and blocks, for 1 to 16 ranks."""

import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ringexp.choices import LAYOUTS, PARTITIONERS
from ringexp.errors import UserError
from ringexp.planning import BlockShape, Mask, Shard, Span, apportion, make_plan
from ringexp.planning.work import needed_rows

token_counts = st.lists(st.integers(1, 9), min_size=1, max_size=16)
sparse_counts = st.lists(st.integers(0, 5), min_size=1, max_size=16).filter(any)  # 0: not in the ring
weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=16)
layouts = st.sampled_from(sorted(LAYOUTS.names))
shard_modes = st.sampled_from(["tokens", "kv"])


def pairs_of(plan, rank, source):
    """Every (query position, key position) the blocks of one rank and source compute."""
    q, kv = plan.q_shards[rank].positions(), plan.kv_shards[source].positions()
    for block in plan.blocks(rank, source):
        assert block.shape is not BlockShape.CAUSAL or block.q_len == block.kv_len
        for row in range(block.q_start, block.q_stop):
            stop = (
                block.kv_start + row - block.q_start + 1
                if block.shape is BlockShape.CAUSAL
                else block.kv_stop
            )
            for column in range(block.kv_start, stop):
                yield q[row], kv[column]


@given(token_counts, layouts, shard_modes)
def test_every_position_is_held_exactly_once(tokens, layout, shard):
    plan = make_plan(sum(tokens), tokens, layout, split=shard)
    for shards in (plan.q_shards, plan.kv_shards):
        held = sorted(position for shard in shards for position in shard.positions())
        assert held == list(range(plan.seq_len))
    assert plan.kv_tokens == tokens


@given(sparse_counts, layouts, st.booleans())
def test_ranks_without_tokens_change_nothing_for_the_others(tokens, layout, causal):
    plan = make_plan(sum(tokens), tokens, layout, mask=Mask.of(causal))
    dense = make_plan(sum(tokens), [count for count in tokens if count], layout, mask=Mask.of(causal))
    assert plan.members == [rank for rank, count in enumerate(tokens) if count]
    assert [plan.q_shards[rank] for rank in plan.members] == list(dense.q_shards)
    for place, rank in enumerate(plan.members):
        assert plan.pairs(rank) == dense.pairs(place)
    assert plan.owner_of_last == plan.members[dense.owner_of_last]


@given(st.lists(st.integers(0, 7), min_size=1, max_size=16).filter(any), layouts, shard_modes, st.booleans())
def test_what_a_rank_needs_of_a_shard_is_up_to_the_last_key_that_any_of_its_queries_sees(
    tokens, layout, shard, causal
):
    assume(all(tokens) or shard == "tokens")
    plan = make_plan(sum(tokens), tokens, layout, split=shard, mask=Mask.of(causal))
    for rank in plan.members:
        for source in plan.members:
            seen = {key for _, key in pairs_of(plan, rank, source)}
            assert len(plan.needed(rank, source)) == len(seen)
            assert plan.kv_shards[source].positions()[: len(seen)] == sorted(seen)
    rows = list(needed_rows(plan, plan.members))
    for place, rank in enumerate(plan.members):
        of = [len(plan.needed(rank, plan.members[place - hop])) for hop in range(len(plan.members))]
        assert [row[place] for row in rows] == of


@given(token_counts, layouts, shard_modes)
def test_local_positions_are_sorted(tokens, layout, shard):
    plan = make_plan(sum(tokens), tokens, layout, split=shard)
    for piece in (*plan.q_shards, *plan.kv_shards):
        assert piece.positions() == sorted(piece.positions())


@given(st.lists(st.integers(1, 7), min_size=1, max_size=16), layouts, shard_modes, st.booleans())
def test_blocks_cover_the_attended_pairs_exactly_once(tokens, layout, shard, causal):
    plan = make_plan(sum(tokens), tokens, layout, split=shard, mask=Mask.of(causal))
    seen = [
        pair
        for rank in range(plan.world_size)
        for source in range(plan.world_size)
        for pair in pairs_of(plan, rank, source)
    ]
    wanted = {(q, k) for q in range(plan.seq_len) for k in range(plan.seq_len) if k <= q or not causal}
    assert len(seen) == len(set(seen))
    assert set(seen) == wanted
    assert sum(plan.pairs(rank) for rank in range(plan.world_size)) == len(wanted)


@given(st.lists(st.integers(2, 40), min_size=2, max_size=16), layouts)
def test_matching_shards_need_one_block_a_source(tokens, layout):
    plan = make_plan(sum(tokens), tokens, layout)
    for rank in range(plan.world_size):
        for source in range(plan.world_size):
            blocks = plan.blocks(rank, source)
            assert len(blocks) <= 1
            assert all((block.shape is BlockShape.CAUSAL) == (rank == source) for block in blocks)


@given(st.lists(st.integers(1, 40).map(lambda n: 2 * n), min_size=1, max_size=16))
def test_zigzag_work_is_proportional_to_the_ranks_own_tokens(tokens):
    plan = make_plan(sum(tokens), tokens, "zigzag")
    for rank, count in enumerate(tokens):
        exact = count * plan.seq_len / 2
        assert abs(plan.pairs(rank) - exact) <= count  # the diagonal itself: half a token a query


@given(weights, st.integers(1, 128), st.integers(0, 5000))
def test_apportion_loses_no_token_and_leaves_no_rank_empty(weights, tile, extra):
    seq_len = len(weights) * tile + extra
    tokens = apportion(weights, seq_len, tile)
    assert sum(tokens) == seq_len
    assert min(tokens) >= tile
    assert sum(count % tile != 0 for count in tokens) <= 1


@given(weights, st.integers(1, 64), st.integers(0, 100_000))
def test_no_tile_elsewhere_would_be_done_earlier(weights, tile, extra):
    seq_len = len(weights) * tile + extra
    tokens = apportion(weights, seq_len, tile)
    ends = [count / w for count, w in zip(tokens, weights, strict=True) if count > tile]
    last = max(ends, default=0.0)
    assert all((count + tile) / w >= last * (1 - 1e-12) for count, w in zip(tokens, weights, strict=True))


@given(weights, st.integers(1, 64), st.integers(0, 100_000))
def test_nobody_is_a_tile_below_his_share(weights, tile, extra):
    seq_len = len(weights) * tile + extra
    exact = [w / sum(weights) * (seq_len - seq_len % tile) for w in weights]
    tokens = apportion(weights, seq_len, tile)
    if min(exact) >= tile:  # otherwise the one-tile minimum takes precedence
        assert all(count >= x - tile * (1 + 1e-9) for count, x in zip(tokens, exact, strict=True))


def test_a_tile_goes_to_whoever_is_done_with_it_first():
    assert apportion([613, 76], seq_len=4096, tile=256) == [3840, 256]  # 452 would be the slow one's share


@given(weights, st.integers(1, 64), st.integers(0, 5000))
def test_apportion_is_deterministic_and_scale_free(weights, tile, extra):
    seq_len = len(weights) * tile + extra
    assert apportion(weights, seq_len, tile) == apportion([w * 2 for w in weights], seq_len, tile)


def test_ties_go_to_the_lower_rank():
    assert apportion([1, 1, 1], seq_len=100, tile=10) == [40, 30, 30]


def test_a_very_slow_rank_still_gets_a_tile():
    assert apportion([1000, 1], seq_len=1024, tile=128) == [896, 128]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: apportion([1, 1], 100, 128), "seq_len=100 is smaller than one tile of 128"),
        (lambda: apportion([1, 0], 1000, 1), "every rank needs a positive speed"),
        (lambda: apportion([1, float("nan")], 1000, 1), "every rank needs a positive speed"),
        (lambda: make_plan(10, [4, 5]), "add up to 9, not to seq_len=10"),
        (lambda: make_plan(9, [10, -1]), "at least 0"),
        (lambda: make_plan(9, [9, 0], split="kv"), "keys/values on every rank"),
        (lambda: make_plan(9, [4, 5], "spiral"), "layout=spiral is unknown"),
        (lambda: make_plan(9, [4, 5], split="heads"), "split=heads is unknown"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_partitioners_ask_the_source_for_what_they_need():
    class Source:
        percentages = (50.0, 100.0)

        def lut(self):
            return [3.0, 5.0]

        def formula(self):
            return [4.0, 5.0]

    weights = {spec.name: spec.load() for spec in PARTITIONERS if not spec.makes_plan}
    asked = {name: list(weigh(Source(), None)) for name, weigh in weights.items()}
    assert asked == {"even": [1, 1], "uneven": [50, 100], "lut": [3, 5], "formula": [4, 5]}


@given(token_counts, token_counts)
def test_overlap_finds_the_common_positions(left, right):
    total = min(sum(left), sum(right))
    a = Shard((Span(0, max(1, total // 2)), Span(total // 2 + 1, total + 2)))
    b = Shard((Span(total // 3, total + 1),))
    common = []
    for here, there, length in a.overlap(b):
        assert a.positions()[here : here + length] == b.positions()[there : there + length]
        common += a.positions()[here : here + length]
    assert common == sorted(set(a.positions()) & set(b.positions()))


def test_planning_never_imports_torch():
    code = "import sys, ringexp.planning; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
