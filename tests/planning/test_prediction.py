"""When the slowest rank is done: hidden hops cost nothing, exposed ones what is left to do after them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.planning import EqualLinks, Link, PlanRequest, RankCost, balanced_plan, make_plan, predicted_ms

COST = RankCost(0.5, 0.01, 1e-4)
counts = st.lists(st.integers(1, 50), min_size=2, max_size=5)


@given(counts, st.floats(0, 100), st.floats(0, 1))
def test_hops_never_make_a_plan_earlier_nor_later_than_one_after_the_other(tokens, latency_ms, token_ms):
    plan = make_plan(sum(tokens), tokens)
    costs, hop = [COST] * len(tokens), EqualLinks(Link(latency_ms, token_ms))
    compute_ms = predicted_ms(plan, costs)
    one_by_one = compute_ms + sum(
        COST.linear_ms(count) + len(tokens) * hop.link.time_ms(count) for count in tokens
    )
    assert compute_ms - 1e-9 <= predicted_ms(plan, costs, hop) <= one_by_one + 1e-9


def test_a_hop_that_is_over_before_the_own_block_is_hidden():
    plan = make_plan(2000, [1000, 1000])
    own_block_ms = COST.pair_ms * 1000 * 1001 / 2
    hidden_ms = predicted_ms(plan, [COST] * 2, EqualLinks(Link(0.9 * own_block_ms, 0.0)))
    assert hidden_ms == pytest.approx(predicted_ms(plan, [COST] * 2))


def test_after_an_exposed_hop_its_block_is_left_to_do():
    plan = make_plan(2000, [1000, 1000])
    block = COST.attention_ms(1000 * 500, 0)  # half of a shard's keys come before half of the queries
    expected = COST.linear_ms(1000) + 400.0 + 0.2 * 1000 + block
    assert predicted_ms(plan, [COST] * 2, EqualLinks(Link(400.0, 0.2))) == pytest.approx(expected)


def test_the_last_shard_of_a_longer_ring_has_made_all_hops():
    plan = make_plan(3000, [1000, 1000, 1000])
    block = COST.attention_ms(1000 * 500, 0)
    expected = COST.linear_ms(1000) + 2 * 400.0 + block
    assert predicted_ms(plan, [COST] * 3, EqualLinks(Link(400.0, 0.0))) == pytest.approx(expected)


def test_one_device_that_was_measured_alone_is_taken_at_that():
    """Its costs are of a rank in a ring: alone it may be faster than they say, and than the ring."""
    hop = EqualLinks(Link(0.01, 1e-5), direct=True)
    fast, slow = RankCost(0.2, 1e-3, 0.0), RankCost(0.2, 8e-3, 0.0)
    split = balanced_plan(PlanRequest(4096, 256), [fast, slow], hop)
    assert len(split.members) == 2
    split_ms = predicted_ms(split, [fast, slow], hop)
    for alone_ms, members in ((0.99 * split_ms, [0]), (1.01 * split_ms, [0, 1])):
        costs = [replace(fast, alone_ms=alone_ms), slow]
        plan = balanced_plan(PlanRequest(4096, 256), costs, hop)
        assert plan.members == members
        assert predicted_ms(plan, costs, hop) == (alone_ms if members == [0] else split_ms)
    assert replace(fast, alone_ms=4.0).slower(1.5).alone_ms == 6.0
