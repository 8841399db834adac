"""Chunks: every pair is computed once over all of them, ranks share each as they share the prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.errors import UserError
from ringexp.planning import BlockShape, EqualLinks, Link, RankCost, make_plan, predicted_ms

counts = st.lists(st.integers(6, 20), min_size=1, max_size=4)


@given(counts, st.sampled_from(["zigzag", "contiguous"]), st.integers(2, 6), st.sampled_from([1, 2]))
def test_chunks_cover_every_pair_exactly_once(tokens, layout, chunks, tile):
    plan = make_plan(sum(tokens), tokens, layout, tile=tile, chunks=chunks)
    assert len(plan.chunks) == chunks
    seen = []
    for chunk in plan.chunks:
        for rank, queries in enumerate(chunk.q_shards):
            for source, keys in enumerate(chunk.kv_shards):
                rows, columns = queries.positions(), keys.positions()
                for block in chunk.blocks(rank, source):
                    for i in range(block.q_len):
                        last = i + 1 if block.shape is BlockShape.CAUSAL else block.kv_len
                        seen += [(rows[block.q_start + i], columns[block.kv_start + j]) for j in range(last)]
    assert sorted(seen) == [(i, j) for i in range(plan.seq_len) for j in range(i + 1)]
    assert plan.tokens == tokens
    assert sum(plan.pairs(rank) for rank in range(plan.world_size)) == len(seen)


@given(counts, st.integers(2, 6))
def test_local_tensors_hold_chunk_after_chunk(tokens, chunks):
    plan = make_plan(sum(tokens), tokens, chunks=chunks)
    for rank, shard in enumerate(plan.q_shards):
        pieces = [position for chunk in plan.chunks for position in chunk.q_shards[rank].positions()]
        assert pieces == shard.positions()
        assert plan.chunks[-1].kv_shards[rank] == shard


def test_each_chunk_is_split_as_the_prompt_is():
    plan = make_plan(4096, [3072, 1024], tile=128, chunks=4)
    assert [chunk.tokens for chunk in plan.chunks] == [[768, 256]] * 4
    costs = [RankCost(1.0, 1.0, 0.0), RankCost(1.0, 3.0, 0.0)]
    assert predicted_ms(plan, costs) == 4 * (1 + 768)


def test_each_chunk_passes_on_all_up_to_it():
    plan = make_plan(4096, [3072, 1024], tile=128, chunks=4)
    nothing_else = [RankCost(0.0, 0.0, 0.0)] * 2
    assert predicted_ms(plan, nothing_else, EqualLinks(Link(5.0, 1.0))) == 4 * 5 + 768 * (1 + 2 + 3 + 4)


def test_a_rank_with_fewer_tokens_than_chunks_is_refused():
    with pytest.raises(UserError, match="5 chunks need as many tokens on every rank, but one has 4"):
        make_plan(64, [60, 4], chunks=5)


def test_what_all_queries_see_is_one_block():
    plan = make_plan(4096, [3072, 1024], chunks=8)
    for rank in (0, 1):
        assert max(len(plan.chunks[-1].blocks(rank, source)) for source in (0, 1)) <= 2
