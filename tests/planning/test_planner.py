"""`ringexp.plan`: shares by speed or cost, caps, tiles for every length, one-line refusals."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ringexp
from ringexp import RankCost, UserError, plan
from ringexp.planning import Mask, balance

speed_lists = st.lists(st.floats(0.01, 100), min_size=1, max_size=12)


@st.composite
def capped(draw) -> tuple[list[float], int, list[int | None]]:
    """Speeds, a length and caps that together hold it."""
    speeds = draw(speed_lists)
    seq_len = draw(st.integers(len(speeds), 5000))
    caps = draw(st.lists(st.none() | st.integers(0, seq_len), min_size=len(speeds), max_size=len(speeds)))
    if sum(seq_len if cap is None else cap for cap in caps) < seq_len:
        caps[draw(st.integers(0, len(caps) - 1))] = None
    return speeds, seq_len, caps


@given(speed_lists, st.integers(12, 100_000), st.sampled_from(["zigzag", "contiguous"]), st.booleans())
def test_shares_are_near_the_speeds_whatever_the_length(speeds, seq_len, layout, causal):
    made = plan(speeds, seq_len, layout=layout, causal=causal)
    assert (made.seq_len, made.layout, made.mask) == (seq_len, layout, Mask.of(causal))
    assert sum(made.tokens) == seq_len
    assert min(made.tokens) >= 1
    tile = max(seq_len // (len(speeds) * 16), 1)
    for speed, share in zip(speeds, made.shares, strict=True):
        exact = speed / sum(speeds) * seq_len
        assert abs(share * seq_len - exact) <= len(speeds) * tile


@given(speed_lists, st.integers(-40, 40))
def test_the_unit_of_speed_does_not_matter(speeds, exponent):
    scaled = [speed * 2.0**exponent for speed in speeds]
    assert plan(scaled, 4096) == plan(speeds, 4096)


def test_long_prompts_are_cut_in_tiles_of_128_and_short_ones_finer():
    assert all(count % 128 == 0 for count in plan([3, 2, 1.1], 65536).tokens)
    assert plan([3, 2, 1], 12).tokens == [6, 4, 2]
    assert plan([1, 1], 4096, tile=1000).tokens == [2096, 2000]


@given(capped())
def test_no_rank_gets_more_than_its_cap(case):
    speeds, seq_len, caps = case
    tokens = plan(speeds, seq_len, tile=1, max_tokens=caps).tokens
    assert sum(tokens) == seq_len
    assert all(cap is None or count <= cap for count, cap in zip(tokens, caps, strict=True))


@given(capped())
def test_what_caps_push_away_goes_to_the_others_by_their_speed(case):
    speeds, seq_len, caps = case
    tokens = plan(speeds, seq_len, tile=1, max_tokens=caps).tokens
    free = [rank for rank, count in enumerate(tokens) if count != caps[rank]]
    weight = sum(speeds[rank] for rank in free)
    for rank in free:
        exact = speeds[rank] / weight * sum(tokens[other] for other in free)
        assert tokens[rank] <= exact + len(speeds) or tokens[rank] == 1
        assert tokens[rank] >= exact - len(speeds)


def test_a_cap_of_nothing_leaves_a_rank_out():
    made = plan([1, 5, 1], 1024, max_tokens=[None, 0, None])
    assert made.members == [0, 2]
    assert made.tokens == [512, 0, 512]


COSTS = [RankCost(0.5, 0.001, 1e-7), RankCost(0.1, 0.004, 4e-7, max_tokens=600), RankCost(900.0, 1.0, 1.0)]


def test_costs_are_balanced_and_a_rank_that_does_not_pay_is_left_out():
    made = plan(COSTS, 4096, tile=128)
    assert made.tokens == balance(COSTS, 4096, 128, "zigzag", Mask.causal())
    assert made.tokens[2] == 0
    assert made.tokens[1] <= 600
    assert plan(COSTS, 4096, tile=128, max_tokens=[None, 256, None]).tokens[1] <= 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 64), "speeds=[] needs one entry for each rank"),
        (([1, 0], 64), "speeds=[1, 0] must be positive numbers, or a RankCost each"),
        (([1, float("nan")], 64), "speeds=[1, nan] must be positive numbers"),
        (([1, 10**400], 64), "must be positive numbers"),
        (([True, 1], 64), "speeds=[True, 1] must be positive numbers"),
        (("12", 64), "speeds='12' must be a list with one entry for each rank"),
        ((5, 64), "speeds=5 must be a list"),
        (([1, "fast"], 64), "must be positive numbers, or a RankCost each"),
        (([1, COSTS[0]], 64), "mixes numbers and costs"),
        (([1, 1, 1], 2), "seq_len=2 is smaller than one tile of 1 tokens for each of 3 ranks"),
        (([1, 1], 64.0), "seq_len=64.0 must be a whole number"),
        (([1, 1], "64"), "seq_len='64' must be a whole number"),
        (([1, 1], True), "seq_len=True must be a whole number"),
        (([1, 1], 0), "seq_len=0 must be a whole number from 1"),
        (
            ([1, 1], 10**23),
            "must be a whole number from 1 to 9007199254740992",
        ),
        (([1, 1], 64, {"tile": 0}), "tile=0 must be a whole number from 1"),
        (([1, 1], 64, {"tile": 2.0}), "tile=2.0 must be a whole number"),
        (([1, 1], 64, {"causal": "no"}), "causal='no' must be True or False"),
        (([1, 1], 64, {"layout": ["zigzag"]}), "layout=['zigzag'] is unknown"),
        (([1, 1], 64, {"tile": 64}), "use seq_len>=128 or a smaller tile"),
        (([1, 1], 64, {"layout": "striped"}), "layout=striped is unknown; choose one of zigzag, contiguous"),
        (([1, 1], 64, {"max_tokens": [3]}), "for each of 2 ranks"),
        (([1, 1], 64, {"max_tokens": [30, 33]}), "seq_len=64 is more than max_tokens=[30, 33] hold together"),
        ((COSTS, 64, {"max_tokens": [-1, 33, 99]}), "max_tokens=-1 must be a whole number of at least 0"),
        (([1, 1], 64, {"max_tokens": [40.0, 40]}), "max_tokens=40.0 must be a whole number"),
        (([1, 1], 64, {"max_tokens": [True, 64]}), "max_tokens=True must be a whole number"),
        (([1, 1], 64, {"max_tokens": 64}), "max_tokens=64 must be a list"),
        (
            ([RankCost(1e308, 1, 1)], 64),
            "RankCost.fixed_ms=1e+308 must be 0 or a number from 1e-100 to",
        ),
        (([RankCost(0, float("nan"), 1)], 64), "RankCost.token_ms=nan must be 0 or a number"),
        (([RankCost(0, 1, -1)], 64), "RankCost.pair_ms=-1 must be 0 or a number"),
        (([RankCost(0, 1, 1, "2")], 64), "RankCost.diagonal_ms='2' must be 0 or a number"),
        (([RankCost(0, 1, 1, max_tokens=1.5)], 64), "RankCost.max_tokens=1.5 must be a whole number"),  # type: ignore
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(arguments, message):
    speeds, seq_len, *rest = arguments
    with pytest.raises(UserError) as error:
        plan(speeds, seq_len, **(rest[0] if rest else {}))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("speeds", "tokens"),
    [
        ([1e308, 1e308], [32, 32]),
        ([5e-324, 5e-324, 5e-324, 5e-324], [16] * 4),
        ([1e308, 5e-324], [60, 4]),
        (np.array([3, 1], dtype=np.float32), [48, 16]),
        ([np.int64(3), np.float16(1)], [48, 16]),
    ],
)
def test_speeds_of_any_size_are_planned(speeds, tokens):
    assert plan(speeds, np.int64(64), tile=np.int32(4)).tokens == tokens


NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True),
    st.sampled_from([0.0, 1.0, 2.5, 1e308, 5e-324, 1e-100, 1e100, np.float32(3), 10**400, True, None, "1"]),
    st.floats(1e-6, 1e6),
)
WHOLE = st.one_of(
    st.integers(1, 5000),
    st.integers(-2, 2**70),
    st.sampled_from([None, 1.0, True, "7", np.int64(9), 2**53, 2**53 + 1]),
)
SENSIBLE = st.floats(1e-9, 10)
COST = st.one_of(
    st.builds(RankCost, SENSIBLE, SENSIBLE, SENSIBLE, SENSIBLE, max_tokens=st.integers(0, 5000)),
    st.builds(RankCost, NUMBERS, NUMBERS, NUMBERS, NUMBERS, max_tokens=WHOLE, alone_ms=NUMBERS),
    st.builds(RankCost, *[st.sampled_from([0.0, 1e-100, 1e-50, 1.0, 1e100])] * 4),
)


@settings(max_examples=300, deadline=None)
@given(
    speeds=st.one_of(
        st.lists(NUMBERS, max_size=6), st.lists(COST, max_size=6), st.lists(st.floats(1e-3, 1e3), max_size=6)
    ),
    seq_len=WHOLE,
    tile=st.one_of(st.none(), st.integers(1, 300), WHOLE),
    layout=st.sampled_from(["zigzag", "contiguous"]),
    causal=st.booleans(),
    data=st.data(),
)
def test_whatever_is_asked_gives_a_plan_or_one_line(speeds, seq_len, tile, layout, causal, data):
    caps = data.draw(
        st.one_of(st.none(), st.lists(WHOLE | st.none(), min_size=len(speeds), max_size=len(speeds)))
    )
    try:
        made = plan(speeds, seq_len, layout=layout, causal=causal, tile=tile, max_tokens=caps)
    except UserError:
        return
    assert sum(made.tokens) == made.seq_len == seq_len
    for rank, count in enumerate(made.tokens):
        own = speeds[rank].max_tokens if isinstance(speeds[rank], RankCost) else None
        most = min((cap for cap in (own, caps and caps[rank]) if cap is not None), default=seq_len)
        assert 0 <= count <= most


def test_planning_imports_no_torch_and_the_ring_no_fms():
    code = """
import sys
from ringexp import plan
assert plan([2, 1], 96).tokens == [64, 32]
assert "torch" not in sys.modules
from ringexp import measure_speeds, ring_attention, shard
assert not {"fms", "hydra", "omegaconf", "transformers"} & set(sys.modules), "more than the ring needs"
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_public_name_is_there():
    for name in ringexp.__all__:
        assert getattr(ringexp, name).__module__.startswith("ringexp.")
    with pytest.raises(AttributeError, match="no attribute plans"):
        ringexp.plans  # noqa: B018
