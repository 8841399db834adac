"""Who keeps the next token, how long a context fits, and what padding leaves of a plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.errors import UserError
from ringexp.planning import BlockShape, MemoryNeed, longest_context, make_plan, next_owner, owners


def test_new_tokens_even_out_what_speed_allows():
    assert owners([30, 10], [3.0, 1.0], [None, None], 8) == [0, 0, 0, 1, 0, 0, 0, 1]


def test_a_rank_with_fewer_tokens_than_its_speed_allows_catches_up():
    assert owners([10, 10], [2.0, 1.0], [None, None], 13) == [0] * 12 + [1]


def test_a_full_rank_gets_no_more():
    assert owners([10, 10], [2.0, 1.0], [13, None], 5) == [0, 0, 0, 1, 1]


def test_a_rank_outside_the_ring_keeps_nothing():
    assert set(owners([10, 0], [1.0, 9.0], [None, None], 5)) == {0}


def test_no_room_is_said_plainly():
    with pytest.raises(UserError, match=r"no rank has room for another token: \[3, 0\] of \[3, 8\]"):
        next_owner([3, 0], [1.0, 1.0], [3, 8])


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0.1, 10)), min_size=1, max_size=5), st.integers(0, 60)
)
def test_the_owner_would_be_done_first(ranks, count):
    held, speeds = [tokens for tokens, _ in ranks], [speed for _, speed in ranks]
    for owner in owners(held, speeds, [None] * len(held), count):
        times = [(tokens + 1) / speed for tokens, speed in zip(held, speeds, strict=True)]
        assert times[owner] == min(times)
        held[owner] += 1


NEED = MemoryNeed(fixed=40, prompt_token=1, own_token=100, kv_token=4)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.integers(0, 10**6), min_size=4, max_size=4),
)
def test_the_longest_context_is_the_last_that_fits(parts, memory):
    limits, shares = memory[: len(parts)], [part / sum(parts) for part in parts]

    def fits(length):
        return all(
            NEED.fixed
            + NEED.prompt_token * length
            + (NEED.own_token * share + NEED.kv_token * (1 - share)) * length
            <= limit * (1 + 1e-12)
            for limit, share in zip(limits, shares, strict=True)
        )

    longest = longest_context(NEED, limits, shares)
    assert longest == 0 or fits(longest)
    assert not fits(longest + 1.001)


def test_a_rank_outside_the_ring_does_not_bound_the_context():
    assert longest_context(NEED, [1141.0, 0.0], [1.0, 0.0]) == longest_context(NEED, [1141.0], [1.0]) == 10


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.sampled_from(["zigzag", "contiguous"]),
    st.integers(0, 40),
)
def test_padded_plans_cover_exactly_what_is_no_padding(tokens, layout, start):
    plan = make_plan(sum(tokens), tokens, layout)
    start = min(start, plan.seq_len)
    seen = []
    for rank, queries in enumerate(plan.q_shards):
        for source, keys in enumerate(plan.kv_shards):
            rows, columns = queries.positions(), keys.positions()
            for block in plan.blocks(rank, source, start):
                for i in range(block.q_len):
                    last = i + 1 if block.shape is BlockShape.CAUSAL else block.kv_len
                    seen += [(rows[block.q_start + i], columns[block.kv_start + j]) for j in range(last)]
    assert sorted(seen) == [(i, j) for i in range(start, plan.seq_len) for j in range(start, i + 1)]
