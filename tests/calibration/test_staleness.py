"""Which stored point is tried out, and when it speaks against the rest."""

import dataclasses

import pytest

from ringexp.calibration.staleness import find_unequal_ranks, is_stale, spot_point
from ringexp.planning import Mask, RankCost
from support.calibration_rows import cost_rows

ROW = cost_rows(RankCost(0.0, 0.0, 1e-6), [4096], Mask.causal())[0]


def row(length: int, tokens: int, time_ms: float = 1.0, spread: float = 0.0):
    return dataclasses.replace(ROW, length=length, tokens=tokens, time_ms=time_ms, spread=spread)


def test_the_point_is_of_the_length_nearest_to_the_run():
    rows = [row(1024, 512), row(4096, 2048), row(16384, 8192)]
    assert spot_point([rows, rows], 5000) == (4096, 2048, 1)


def test_the_largest_share_within_the_budget_is_taken():
    rows = [row(4096, 2048, 200.0), row(4096, 512, 50.0), row(4096, 128, 10.0)]
    assert spot_point([rows], 4096) == (4096, 512, 1)


def test_a_slow_rank_counts_for_the_budget_of_all():
    fast = [row(4096, 2048, 20.0), row(4096, 512, 5.0)]
    slow = [row(4096, 2048, 200.0), row(4096, 512, 50.0)]
    assert spot_point([fast, slow], 4096) == (4096, 512, 1)


def test_beyond_the_budget_the_quickest_is_taken():
    assert spot_point([[row(4096, 2048, 900.0), row(4096, 512, 300.0)]], 4096) == (4096, 512, 1)


def test_a_point_that_a_rank_lacks_is_none_for_all():
    assert spot_point([[row(4096, 2048)], [row(8192, 4096)]], 4096) is None
    assert spot_point([[row(4096, 2048)], []], 4096) is None


@pytest.mark.parametrize("now", [0.93, 1.07])
def test_more_than_the_tolerance_off_is_stale(now):
    assert is_stale(row(64, 32, 1.0), row(64, 32, now), 0.05)


@pytest.mark.parametrize(
    ("stored", "now"),
    [
        (row(64, 32, 1.0), row(64, 32, 1.04)),
        (row(64, 32, 1.0, 0.1), row(64, 32, 1.15)),
        (row(64, 32, 1.0), row(64, 32, 1.15, 0.1)),
    ],
    ids=["within tolerance", "within the stored spread", "within the spread now"],
)
def test_what_may_be_noise_is_not_stale(stored, now):
    assert not is_stale(stored, now, 0.05)


def test_ranks_of_one_kind_that_differ_are_named_with_how_much():
    ranks = [[row(64, 32, time_ms), row(128, 64, 2 * time_ms)] for time_ms in (1.02, 1.1, 1.0)]
    assert find_unequal_ranks(ranks) == (1, 2, pytest.approx(0.1))


def test_one_point_that_is_off_says_nothing():
    assert (
        find_unequal_ranks([[row(n, n // 2, time_ms) for n in (64, 128, 256)] for time_ms in (1.0, 1.02)])
        is None
    )
    first = [row(n, n // 2) for n in (64, 128, 256)]
    assert find_unequal_ranks([first, [*first[:2], row(256, 128, 9.0)]]) is None


@pytest.mark.parametrize("spreads", [(0.1, 0.0), (0.0, 0.1)])
def test_noise_is_no_difference(spreads):
    assert find_unequal_ranks([[row(64, 32, 1.0, spreads[0])], [row(64, 32, 1.15, spreads[1])]]) is None


def test_ranks_with_rows_of_their_own_may_differ():
    other = dataclasses.replace(row(64, 32, 2.0), hardware="another")
    slower = dataclasses.replace(row(64, 32, 2.0), percentage=25.0)
    assert find_unequal_ranks([[row(64, 32)], [other], [slower]]) is None
    assert find_unequal_ranks([[], []]) is None
    assert find_unequal_ranks([[row(64, 32)]]) is None
