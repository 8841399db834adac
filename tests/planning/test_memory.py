"""Tokens that a rank's memory holds: the formula solved for tokens, and its limits kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.errors import UserError
from ringexp.planning import (
    Mask,
    MemoryNeed,
    RankCost,
    balance,
    check_memory,
    make_plan,
    validate_memory_limit,
)

needs = st.builds(
    lambda fixed, prompt, kv, more: MemoryNeed(fixed, prompt, kv + more, kv),
    st.integers(0, 10**9),
    st.integers(0, 10**4),
    st.integers(1, 10**4),
    st.integers(1, 10**5),
)


@given(needs, st.integers(1, 10**6), st.integers(0, 10**11))
def test_the_most_tokens_fit_and_one_more_does_not(need, seq_len, limit):
    most = need.max_tokens(limit, seq_len)
    assert 0 <= most <= seq_len
    if most:
        assert need.bytes(most, seq_len) <= limit
    if most < seq_len:
        assert need.bytes(most + 1, seq_len) > limit


def test_a_rank_without_tokens_holds_no_keys_of_others():
    assert MemoryNeed(100, 2, 50, 10).bytes(0, 1000) == 100 + 2 * 1000


def test_balanced_moves_tokens_to_the_rank_with_memory():
    need = MemoryNeed(0, 0, 50, 10)
    room = need.max_tokens(10 * 4096 + 40 * 1000, 4096)
    fast, slow = RankCost(0, 0.001, 0, max_tokens=room), RankCost(0, 0.1, 0)
    assert balance([fast, slow], 4096, 8, "zigzag", Mask.causal()) == [1000, 3096]


def test_too_long_a_prompt_ends_with_the_numbers():
    costs = [RankCost(0, 0.001, 0, max_tokens=1000), RankCost(0, 0.001, 0, max_tokens=500)]
    with pytest.raises(UserError, match=r"seq_len=4096 does not fit .* 1000 \+ 500 = 1500 tokens at most"):
        balance(costs, 4096, 8, "zigzag", Mask.causal())


def test_a_plan_beyond_memory_is_named_by_its_rank():
    plan = make_plan(100, [60, 40])
    assert check_memory(plan, [60, None]) is None
    assert (check_memory(plan, [None, 39]) or "").startswith("rank 1 gets 40 tokens, and its memory holds 39")


@pytest.mark.parametrize("limit", [None, 1, 0.5, [1, 80.0]])
def test_limits_are_one_number_or_one_per_rank(limit):
    validate_memory_limit(limit, 2)


@pytest.mark.parametrize("limit", [0, -1, "8", True, [1], [1, 0], [1, None], []])
def test_other_limits_are_refused(limit):
    with pytest.raises(UserError, match=r"^memory_limit_gib="):
        validate_memory_limit(limit, 2)
