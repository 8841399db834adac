"""Water-filling against every possible split, and the promises a balanced plan makes."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.errors import UserError
from ringexp.planning import LAYOUTS, RankCost, balance, make_plan

costs_of_a_rank = st.builds(
    RankCost,
    fixed_ms=st.sampled_from([0.0, 0.5, 5.0, 100.0]),
    token_ms=st.floats(0.001, 1.0),
    pair_ms=st.floats(0.0001, 0.1),
    diagonal_ms=st.sampled_from([0.0, 0.0005, 0.05]),
)
layouts = st.sampled_from(sorted(LAYOUTS))


def slowest_ms(costs, tokens, layout, causal=True):
    return make_plan(sum(tokens), tokens, layout, causal=causal).predicted_ms(costs)


def splits(tiles, ranks):
    return [split for split in product(range(tiles + 1), repeat=ranks) if sum(split) == tiles]


@given(st.lists(costs_of_a_rank, min_size=1, max_size=3), st.integers(1, 7), layouts, st.booleans())
def test_no_other_split_in_whole_tiles_is_faster(costs, tiles, layout, causal):
    tile = 8
    found = balance(costs, tiles * tile, tile, layout, causal)
    best = min(
        slowest_ms(costs, [tile * count for count in split], layout, causal)
        for split in splits(tiles, len(costs))
    )
    # Zigzag work is a * seq_len / 2 but for half a pair a query.
    slack = max(cost.pair_ms + cost.diagonal_ms for cost in costs) * tiles * tile
    assert slowest_ms(costs, found, layout, causal) <= best * (1 + 1e-9) + slack


@given(st.lists(costs_of_a_rank, min_size=1, max_size=16), st.integers(1, 5000), st.integers(1, 64), layouts)
def test_all_tokens_are_given_out_in_whole_tiles(costs, seq_len, tile, layout):
    tokens = balance(costs, seq_len, tile, layout, True)
    assert sum(tokens) == seq_len
    assert min(tokens) >= 0
    assert sum(1 for count in tokens if count % tile) <= 1


@given(st.lists(costs_of_a_rank, min_size=1, max_size=8), st.integers(64, 5000), layouts)
def test_a_balanced_plan_is_never_later_than_the_best_rank_alone(costs, seq_len, layout):
    tokens = balance(costs, seq_len, 16, layout, True)
    pairs = seq_len * (seq_len + 1) / 2
    alone = min(cost.time_ms(seq_len, pairs, pairs) for cost in costs)
    slack = max(cost.pair_ms + cost.diagonal_ms for cost in costs) * seq_len
    assert slowest_ms(costs, tokens, layout) <= alone * (1 + 1e-9) + slack


def test_a_rank_that_does_not_pay_gets_nothing():
    fast, slow = RankCost(0.1, 0.001, 0.0), RankCost(50.0, 0.001, 0.0)
    assert balance([fast, slow], 4096, 128, "zigzag", True) == [4096, 0]


def test_speeds_two_to_one_are_shared_two_to_one_under_zigzag():
    costs = [RankCost(0.0, 0.0, 1e-6), RankCost(0.0, 0.0, 2e-6)]
    assert balance(costs, 48 * 128, 128, "zigzag", True) == [32 * 128, 16 * 128]


def test_contiguous_boundaries_of_pure_attention_follow_the_square_root_law():
    costs = [RankCost(0.0, 0.0, 1e-6)] * 2
    first, _ = balance(costs, 100_000, 1, "contiguous", True)
    assert first == pytest.approx(100_000 * 0.5**0.5, rel=1e-3)


def test_memory_is_respected_and_its_lack_named():
    fast = RankCost(0.0, 0.001, 0.0, max_tokens=1000)
    slow = RankCost(0.0, 0.1, 0.0)
    assert balance([fast, slow], 4096, 8, "zigzag", True) == [1000, 3096]
    with pytest.raises(UserError, match="does not fit the ranks' memory"):
        balance([fast, fast], 4096, 8, "zigzag", True)
