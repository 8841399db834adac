"""The work of a plan's parts equals the pairs of positions counted one by one."""

from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringexp.choices import LAYOUTS
from ringexp.planning import BlockShape, Mask, RankCost, busy_ms, make_plan
from ringexp.planning.plan import pairs_between
from ringexp.planning.work import block_rows, linear_ms

COSTS = [
    RankCost(3.0, 0.5, 0.01, 0.003, hop_ms=0.7, hop_token_ms=0.11),
    RankCost(1.0, 0.25, 0.05, 0.0, hop_ms=0.2, hop_token_ms=0.01),
    RankCost(0.0, 2.0, 0.001, 0.02, hop_ms=1.3, hop_token_ms=0.05),
    RankCost(7.0, 0.125, 0.02, 0.001, hop_ms=0.1, hop_token_ms=0.3),
]


@st.composite
def plans(draw):
    """Draw a plan of up to four ranks, in any mode: padded, in chunks, keys/values apart, without a mask."""
    tokens = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
    seq_len, layout = sum(tokens), draw(st.sampled_from(sorted(LAYOUTS.names)))
    starts = draw(st.lists(st.integers(0, seq_len - 1), max_size=3))
    if all(tokens) and draw(st.booleans()):
        if min(tokens) > 1 and draw(st.booleans()):
            return make_plan(seq_len, tokens, layout, chunks=2, starts=starts)
        return make_plan(
            seq_len, tokens, layout, split="kv", mask=Mask.of(draw(st.booleans())), starts=starts
        )
    return make_plan(seq_len, tokens, layout, mask=Mask.of(draw(st.booleans())), starts=starts)


def counted_ms(plan, rank, source):
    """Return one rank's time in ms with the shard of one source, from its pairs counted one by one."""
    pairs, diagonal = [], []
    for start in plan.starts or (0,):
        blocks = plan.blocks(rank, source, start)
        queries = [p for p in plan.q_shards[rank].positions() if p >= start]
        keys = [p for p in plan.kv_shards[source].positions() if p >= start]
        pairs.append(sum(key <= query or not plan.mask.is_causal for query in queries for key in keys))
        diagonal.append(sum(b.q_len * (b.q_len + 1) / 2 for b in blocks if b.shape is BlockShape.CAUSAL))
    cost = COSTS[rank]
    hop_ms = cost.hop_ms + cost.hop_token_ms * plan.tokens[rank] if rank != source and any(pairs) else 0.0
    return cost.pair_ms * fmean(pairs) + cost.diagonal_ms * fmean(diagonal) + hop_ms


@given(plans())
def test_each_hop_costs_the_pairs_that_are_computed_in_it(plan):
    for part in plan.chunks or (plan,):
        members = part.members
        rows = list(block_rows(part, COSTS, members))
        assert len(rows) == len(members)
        for hop, row in enumerate(rows):
            expected = [counted_ms(part, rank, members[place - hop]) for place, rank in enumerate(members)]
            assert row == pytest.approx(expected)


@given(plans())
def test_a_rank_is_busy_for_its_tokens_and_its_pairs(plan):
    expected = [0.0] * plan.world_size
    for part in plan.chunks or (plan,):
        assert linear_ms(part, COSTS, part.members) == pytest.approx(
            [COSTS[rank].fixed_ms + COSTS[rank].token_ms * part.tokens[rank] for rank in part.members]
        )
        for rank in part.members:
            expected[rank] += COSTS[rank].fixed_ms + COSTS[rank].token_ms * part.tokens[rank]
            expected[rank] += sum(counted_ms(part, rank, source) for source in part.members)
    assert busy_ms(plan, COSTS) == pytest.approx(expected)


@given(plans())
def test_tokens_and_pairs_of_padding_do_not_count(plan):
    starts = plan.starts or (0,)
    for rank, queries in enumerate(plan.q_shards):
        real = [sum(p >= start for p in queries.positions()) for start in starts]
        assert plan.real_tokens(rank) == fmean(real)
        seen = [
            sum(
                p - start + 1 if plan.mask.is_causal else plan.seq_len - start
                for p in queries.positions()
                if p >= start
            )
            for start in starts
        ]
        assert plan.pairs(rank) == pytest.approx(fmean(seen))
        assert 0 <= plan.causal_pairs(rank) <= plan.pairs(rank)


@given(plans())
def test_no_block_is_empty_and_ranks_without_tokens_have_none(plan):
    for part in (plan, *plan.chunks):
        for rank in range(plan.world_size):
            for source in range(plan.world_size):
                for start in part.starts or (0,):
                    blocks = part.blocks(rank, source, start)
                    assert all(block.q_len > 0 and block.kv_len > 0 for block in blocks)
                    assert not blocks or {rank, source} <= set(part.members)


@given(plans())
def test_keys_move_only_where_they_are_split_in_another_way(plan):
    for part in plan.chunks:
        assert part.aligned
    assert plan.aligned == (plan.q_shards == plan.kv_shards)


@given(data=st.data())
@settings(max_examples=200)
def test_pairs_are_those_of_all_blocks(data):
    """`Plan.pairs` counts them without making the blocks of every two ranks."""
    tokens = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any))
    seq_len, causal = sum(tokens), data.draw(st.booleans())
    plan = make_plan(
        seq_len,
        tokens,
        data.draw(st.sampled_from(["zigzag", "contiguous"])),
        mask=Mask.of(causal),
        chunks=data.draw(st.integers(1, min(3, max(min(tokens), 1)))) if causal else 1,
        starts=data.draw(st.lists(st.integers(0, seq_len - 1), max_size=3)),
    )
    parts = plan.chunks or (plan,)
    for rank in range(len(tokens)):
        blocks = sum(pairs_between(part, rank, source)[0] for part in parts for source in part.members)
        assert plan.pairs(rank) == pytest.approx(blocks)
