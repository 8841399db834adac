"""Water-filling against every possible split, and the promises a balanced plan makes."""

import random
from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.choices import LAYOUTS
from ringexp.errors import UserError
from ringexp.planning import Mask, RankCost, balance, make_plan, predicted_ms, waterfill
from ringexp.planning.masks import CAUSAL

costs_of_a_rank = st.builds(
    RankCost,
    fixed_ms=st.sampled_from([0.0, 0.5, 5.0, 100.0]),
    token_ms=st.floats(0.001, 1.0),
    pair_ms=st.floats(0.0001, 0.1),
    diagonal_ms=st.sampled_from([0.0, 0.0005, 0.05]),
)
layouts = st.sampled_from(sorted(LAYOUTS.names))


def slowest_ms(costs, tokens, layout, mask=CAUSAL):
    return predicted_ms(make_plan(sum(tokens), tokens, layout, mask=mask), costs)


def splits(seq_len, tile, ranks):
    """Yield every split in whole tiles. One rank, each in turn, also gets the tokens that fill no tile."""
    whole, rest = divmod(seq_len, tile)
    for split in product(range(whole + 1), repeat=ranks):
        if sum(split) == whole:
            tokens = [tile * count for count in split]
            for taker in range(ranks if rest else 1):
                yield [count + rest * (rank == taker) for rank, count in enumerate(tokens)]


@dataclass(frozen=True)
class Case:
    costs: list[RankCost]
    seq_len: int
    tile: int
    layout: str
    mask: Mask

    def best_ms(self):
        """Return the least time in ms of all splits that the ranks' memories can hold; None without one."""
        times_ms = [
            slowest_ms(self.costs, tokens, self.layout, self.mask)
            for tokens in splits(self.seq_len, self.tile, len(self.costs))
            if holds(self.costs, tokens)
        ]
        return min(times_ms, default=None)


def holds(costs, tokens):
    return all(
        cost.max_tokens is None or count <= cost.max_tokens for cost, count in zip(costs, tokens, strict=True)
    )


def some_case(rng):
    """Up to four ranks whose costs differ in every part, so that which of them pays is not plain."""
    count, tile = rng.randint(1, 4), rng.randint(1, 4)
    tiles = rng.randint(1, 12 if count < 4 else 9)
    seq_len = tile * tiles + (rng.randrange(tile) if rng.random() < 0.4 else 0)
    costs = [
        RankCost(
            fixed_ms=rng.choice((0.0, 0.5, 5.0, rng.uniform(0, 50))),
            token_ms=10 ** rng.uniform(-3, 0),
            pair_ms=10 ** rng.uniform(-4, -1),
            diagonal_ms=rng.choice((0.0, 10 ** rng.uniform(-4, 0))),
        )
        for _ in range(count)
    ]
    if rng.random() < 0.3:
        costs = [cost.capped(rng.choice((None, rng.randint(0, seq_len)))) for cost in costs]
    return Case(costs, seq_len, tile, rng.choice(sorted(LAYOUTS.names)), Mask.of(rng.random() < 0.8))


def test_no_split_is_faster_in_400_small_cases():
    rng = random.Random(1)
    limited = left_out = rests = 0
    for _ in range(400):
        case = some_case(rng)
        best_ms = case.best_ms()
        if best_ms is None:
            with pytest.raises(UserError, match="does not fit the ranks' memory"):
                balance(case.costs, case.seq_len, case.tile, case.layout, case.mask)
            continue
        tokens = balance(case.costs, case.seq_len, case.tile, case.layout, case.mask)
        assert holds(case.costs, tokens), case
        assert sum(count % case.tile > 0 for count in tokens) <= 1, case
        assert slowest_ms(case.costs, tokens, case.layout, case.mask) <= best_ms * (1 + 1e-9), case
        limited += any(cost.max_tokens is not None for cost in case.costs)
        left_out += 0 in tokens
        rests += case.seq_len % case.tile > 0
    assert min(limited, left_out, rests) > 30  # so that the cases are of every kind


def test_odd_counts_of_several_ranks_are_split_best():
    """More ends than one are followed from rank to rank."""
    rng = random.Random(7)
    for _ in range(60):
        costs = [
            RankCost(rng.choice((0.0, 0.5)), 10 ** rng.uniform(-3, -2), 10 ** rng.uniform(-2, -1))
            for _ in range(5)
        ]
        case = Case(costs, rng.randint(5, 7), 1, "zigzag", CAUSAL)
        tokens = balance(costs, case.seq_len, 1, "zigzag", CAUSAL)
        assert slowest_ms(costs, tokens, "zigzag") <= case.best_ms() * (1 + 1e-9), case


@given(st.lists(costs_of_a_rank, min_size=1, max_size=16), st.integers(1, 5000), st.integers(1, 64), layouts)
def test_all_tokens_are_given_out_in_whole_tiles(costs, seq_len, tile, layout):
    tokens = balance(costs, seq_len, tile, layout, CAUSAL)
    assert sum(tokens) == seq_len
    assert min(tokens) >= 0
    assert sum(1 for count in tokens if count % tile) <= 1


@given(st.lists(costs_of_a_rank, min_size=1, max_size=40), st.integers(64, 5000), st.integers(1, 32), layouts)
def test_a_balanced_plan_is_never_later_than_the_best_rank_alone(costs, seq_len, tile, layout):
    tokens = balance(costs, seq_len, tile, layout, CAUSAL)
    alone_ms = min(slowest_ms([cost], [seq_len], layout) for cost in costs)
    assert slowest_ms(costs, tokens, layout) <= alone_ms * (1 + 1e-9)


@given(st.lists(costs_of_a_rank, min_size=2, max_size=8), st.integers(64, 3000), st.data())
def test_a_tile_moved_to_another_rank_is_no_faster(costs, seq_len, data):
    layout, tile = data.draw(layouts), 2 * data.draw(st.integers(1, 16))
    tokens = balance(costs, seq_len, tile, layout, CAUSAL)
    giver = data.draw(st.sampled_from([rank for rank, count in enumerate(tokens) if count]))
    moved = list(tokens)
    moved[giver] -= (given := min(tile, tokens[giver]))
    moved[data.draw(st.integers(0, len(costs) - 1))] += given
    assert slowest_ms(costs, tokens, layout) <= slowest_ms(costs, moved, layout) * (1 + 1e-9)


def test_many_ranks_and_a_long_prompt_take_few_fillings(monkeypatch):
    """Counted and not timed: one filling of 1,024 ranks takes about a millisecond."""
    fillings = 0
    fill = waterfill._Filling.counts

    def counted(self, deadline_ms):
        nonlocal fillings
        fillings += 1
        return fill(self, deadline_ms)

    monkeypatch.setattr(waterfill._Filling, "counts", counted)
    rng = random.Random(0)
    costs = [RankCost(0.1, 2e-4 * rng.uniform(1, 4), 3e-8 * rng.uniform(1, 4), 1e-8) for _ in range(1024)]
    for layout in LAYOUTS.names:
        balance(costs, 1 << 20, 64, layout, CAUSAL)
    assert fillings < 2 * 60


def test_a_rank_that_does_not_pay_gets_nothing():
    fast, slow = RankCost(0.1, 0.001, 0.0), RankCost(50.0, 0.001, 0.0)
    assert balance([fast, slow], 4096, 128, "zigzag", CAUSAL) == [4096, 0]


def test_speeds_two_to_one_are_shared_two_to_one_under_zigzag():
    costs = [RankCost(0.0, 0.0, 1e-6), RankCost(0.0, 0.0, 2e-6)]
    assert balance(costs, 48 * 128, 128, "zigzag", CAUSAL) == [32 * 128, 16 * 128]


def test_contiguous_boundaries_of_pure_attention_follow_the_square_root_law():
    costs = [RankCost(0.0, 0.0, 1e-6)] * 2
    first, _ = balance(costs, 100_000, 1, "contiguous", CAUSAL)
    assert first == pytest.approx(100_000 * 0.5**0.5, rel=1e-3)


def test_memory_is_respected_and_its_lack_named():
    fast = RankCost(0.0, 0.001, 0.0, max_tokens=1000)
    slow = RankCost(0.0, 0.1, 0.0)
    assert balance([fast, slow], 4096, 8, "zigzag", CAUSAL) == [1000, 3096]
    with pytest.raises(UserError, match="does not fit the ranks' memory"):
        balance([fast, fast], 4096, 8, "zigzag", CAUSAL)
