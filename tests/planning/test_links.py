"""Links and the hops over them: what comes over which, when, and the least time it takes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.planning import (
    EqualLinks,
    Link,
    Mask,
    NodeLinks,
    RankCost,
    carried_ms,
    make_plan,
    predicted_ms,
    simulate,
)
from ringexp.planning.work import block_rows, linear_ms

FREE = RankCost(0.0, 0.0, 0.0)
costs_of_a_rank = st.builds(RankCost, st.floats(0, 5), st.floats(0, 1), st.floats(0.0001, 0.1))
counts = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any)
layouts = st.sampled_from(["zigzag", "contiguous"])


def test_a_shard_crosses_nodes_only_where_ring_neighbours_are_on_two():
    fast, slow, late = Link(0.1, 1e-4), Link(0.1, 3e-4), Link(0.5, 1e-4)
    across = Link(9.0, 0.01)
    links = NodeLinks([0, 0, 1, 1, 1], [fast, slow, fast, late, fast], across)
    assert links.into([0, 1, 2, 3, 4]) == [across, slow, across, late, late]
    assert links.into([0, 1]) == [slow, slow]
    assert links.into([1, 4, 2]) == [across, across, fast]


@given(counts, layouts, st.booleans(), st.floats(0, 5), st.floats(0, 1))
def test_direct_copies_that_nobody_computes_with_take_what_the_links_carry(
    tokens, layout, causal, latency_ms, token_ms
):
    plan, links = (
        make_plan(sum(tokens), tokens, layout, mask=Mask.of(causal)),
        EqualLinks(Link(latency_ms, token_ms), direct=True),
    )
    carried = [
        sum(links.link.time_ms(len(plan.needed(rank, source))) for source in plan.members if source != rank)
        for rank in plan.members
    ]
    assert carried_ms(plan, links) == pytest.approx(max(carried))
    assert predicted_ms(plan, [FREE] * len(tokens), links) == pytest.approx(max(carried))


@given(st.integers(2, 6), st.integers(1, 20), st.data())
def test_equal_shards_that_are_sent_on_take_the_slowest_link_at_every_hop(ranks, count, data):
    within = [Link(data.draw(st.floats(0, 5)), data.draw(st.floats(0, 1))) for _ in range(ranks)]
    plan = make_plan(ranks * count, [count] * ranks)
    links = NodeLinks([0] * ranks, within, Link(0.0, 0.0))
    slowest = max(link.time_ms(count) for link in links.into(plan.members))
    assert carried_ms(plan, links) == pytest.approx((ranks - 1) * slowest)
    assert predicted_ms(plan, [FREE] * ranks, links) == pytest.approx((ranks - 1) * slowest)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.floats(0.01, 5), st.floats(0.01, 1))
def test_the_largest_shard_sets_the_pace_of_all_that_are_sent_on(tokens, latency_ms, token_ms):
    """It goes over every link but the one to its owner, and each link carries all shards but one."""
    plan, link = make_plan(sum(tokens), tokens), EqualLinks(Link(latency_ms, token_ms))
    largest = (len(tokens) - 1) * link.link.time_ms(max(tokens))
    others = (len(tokens) - 1) * latency_ms + token_ms * (sum(tokens) - min(tokens))
    assert carried_ms(plan, link) == pytest.approx(max(largest, others))


@given(counts, layouts, st.floats(0, 20), st.floats(0, 2), st.booleans(), st.data())
def test_each_hop_is_computed_once_its_shard_is_there_and_the_one_before_is_done(
    tokens, layout, latency_ms, token_ms, direct, data
):
    plan, links = (
        make_plan(sum(tokens), tokens, layout),
        EqualLinks(Link(latency_ms, token_ms), direct=direct),
    )
    costs = [data.draw(costs_of_a_rank) for _ in tokens]
    timeline, members = simulate(plan, costs, links), plan.members
    rows, linear = list(block_rows(plan, costs, members)), linear_ms(plan, costs, members)
    for place, rank in enumerate(members):
        hops = timeline.hops(place)
        assert [hop.source for hop in hops] == [members[place - hop] for hop in range(len(members))]
        own, free = hops[0], linear[place]
        assert own.transfer_begin == own.arrival == own.compute_begin == free
        for number, hop in enumerate(hops):
            assert hop.compute_begin == max(free, hop.arrival)
            assert hop.wait_ms == pytest.approx(hop.compute_begin - free)
            assert hop.compute_end == pytest.approx(hop.compute_begin + rows[number][place])
            free = hop.compute_end
            if number:
                tokens_sent = len(plan.needed(rank, hop.source)) if direct else plan.tokens[hop.source]
                assert hop.arrival - hop.transfer_begin >= links.link.time_ms(tokens_sent) - 1e-9
                assert hop.transfer_begin >= hops[number - 1].arrival
        assert timeline.latency_ms >= free


def test_what_is_slower_takes_longer_in_every_part():
    cost = RankCost(1.0, 2.0, 3.0, 4.0, 500, 5.0, 6.0, alone_ms=7.0)
    twice = RankCost(2.0, 4.0, 6.0, 8.0, 500, 10.0, 12.0, alone_ms=14.0)
    assert cost.slower(2.0) == twice
    assert replace(cost, alone_ms=None).slower(2.0) == replace(twice, alone_ms=None)
    assert cost.with_hops(3) == replace(cost, fixed_ms=16.0, token_ms=20.0, hop_ms=0.0, hop_token_ms=0.0)
    assert [cost.capped(most).max_tokens for most in (None, 400, 600)] == [500, 400, 500]
    assert replace(cost, max_tokens=None).capped(None).max_tokens is None
    assert (cost.time_ms(0, 10.0, 10.0), cost.time_ms(1, 10.0, 5.0)) == (0.0, 1.0 + 2.0 + 30.0 + 20.0)
