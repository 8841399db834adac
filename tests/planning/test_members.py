"""Which ranks a balanced plan leaves out, and the limits of what can be planned."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp import UserError, plan
from ringexp.choices import LAYOUTS
from ringexp.planning import (
    EqualLinks,
    Link,
    Mask,
    PlanRequest,
    RankCost,
    apportion,
    balance,
    balanced_plan,
    check_enough_tiles,
    make_plan,
    predicted_ms,
)
from ringexp.planning.apportion import apportion_within
from ringexp.planning.balanced import FINE, _member_counts

DEAR = EqualLinks(Link(1e6, 0.0))
layouts = sorted(LAYOUTS.names)


@given(st.integers(1, 2000))
def test_numbers_of_members_are_tried_ever_finer_down_to_one(ranks):
    counts = _member_counts(ranks)
    assert (counts[0], counts[-1]) == (ranks, 1)
    for more, fewer in pairwise(counts):
        assert 1 <= more - fewer <= max(1, more // FINE)
    assert counts[-FINE:] == list(range(min(ranks, FINE), 0, -1))
    assert len(counts) <= 70


@pytest.mark.parametrize("ranks", [2, 20])
def test_where_hops_are_too_dear_the_fastest_rank_is_alone(ranks):
    costs = [RankCost(1.0, 0.01 * (1 + (rank + 1) % ranks), 0.0) for rank in range(ranks)]
    alone = balanced_plan(PlanRequest(512, 16), costs, DEAR)
    assert alone.members == [ranks - 1]
    assert predicted_ms(alone, costs, DEAR) == pytest.approx(1.0 + 0.01 * 512)
    assert len(balanced_plan(PlanRequest(512, 16), costs).members) > 1  # hops that are not known are free


def test_the_fastest_rank_is_not_alone_if_its_memory_is_too_small():
    fast, slow = RankCost(1.0, 0.01, 0.0, max_tokens=100), RankCost(1.0, 0.02, 0.0)
    made = balanced_plan(PlanRequest(512, 4), [fast, slow, slow], EqualLinks(Link(50.0, 0.0)))
    assert made.tokens[0] <= 100
    assert sum(made.tokens) == 512
    assert len(made.members) == 2


@pytest.mark.parametrize("layout", layouts)
def test_ranks_whose_work_costs_nothing_can_do_all_of_it(layout):
    free = RankCost(0.0, 0.0, 0.0)
    assert sum(balance([free, free], 100, 8, layout, Mask.causal())) == 100
    tokens = balance([RankCost(1.0, 1.0, 1.0), free], 100, 8, layout, Mask.causal())
    assert predicted_ms(make_plan(100, tokens, layout), [RankCost(1.0, 1.0, 1.0), free]) == 0.0


def test_tiles_have_at_least_one_token_and_every_rank_a_tile():
    for tile in (0, -1):
        with pytest.raises(UserError, match=f"tile={tile} must be at least 1 token"):
            apportion([1.0, 1.0], 64, tile)
    with pytest.raises(UserError, match="every rank needs a positive speed"):
        apportion([], 64, 8)
    with pytest.raises(UserError, match=r"use seq_len>=24 or a smaller tile"):
        check_enough_tiles(23, 3, 8)
    check_enough_tiles(24, 3, 8)
    assert apportion([5.0, 1.0, 1.0], 24, 8) == [8, 8, 8]


def test_a_cap_that_is_just_reached_changes_nothing():
    assert apportion_within([1.0, 1.0], 64, 8, [32, None]) == [32, 32]
    assert apportion_within([1.0, 1.0], 64, 8, [31, None]) == [31, 33]


def test_by_default_a_plan_is_causal_zigzag():
    made = plan([1.0, 1.0], 64)
    assert (made.layout, made.mask) == ("zigzag", Mask.causal())
    assert (made.chunks, made.starts, made.aligned) == ((), (), True)


def test_a_hop_without_tokens_takes_no_time():
    assert [Link(2.0, 3.0).time_ms(count) for count in (0, 1, 2)] == [0.0, 5.0, 8.0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from(layouts), st.integers(1, 3))
def test_only_keys_are_shared_out_by_speed_where_queries_are_even(tokens, layout, tile):
    seq_len = max(sum(tokens), tile * len(tokens))
    tokens = [*tokens[:-1], seq_len - sum(tokens[:-1])]
    made = make_plan(seq_len, tokens, layout, split="kv", tile=tile)
    assert made.kv_tokens == tokens
    assert made.tokens == apportion([1.0] * len(tokens), seq_len, tile)
    assert made.aligned == (made.tokens == tokens)
    assert made.shares == [count / seq_len for count in tokens]
    assert made.q_shards[made.owner_of_last].last == seq_len - 1
