"""Planning anew: what a workload of several units, its hops and a rank's memory change about it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.config import AdaptiveConfig
from ringexp.planning import AdaptivePlanner, EqualLinks, Link, RankCost, make_plan
from support.drifting import COST, SEQ_LEN, TILE, busy_ms, planned

SLOWER = [1.0, 1.0, 1.0, 1.3, 1.3, 1.3]
"""The factors of rank 1, prompt by prompt."""


def planner(costs, units=1, links=None, **settings):
    """Return an adaptive planner of a zigzag ring, which keeps all plans that it asked for."""
    asked = []

    def make(costs):
        asked.append(planned(costs, "zigzag"))
        return asked[-1]

    def move(tokens):
        return make_plan(SEQ_LEN, tokens)

    return AdaptivePlanner(AdaptiveConfig(**settings), costs, make, move, TILE, units, links), asked


def play(adaptive, costs, factors_of_rank_1, units=1):
    """Run prompts without noise; returns the plan of each."""
    plans = []
    for factor in factors_of_rank_1:
        plans.append(adaptive.plan)
        first, *others = busy_ms(costs, adaptive.plan)
        adaptive.observe([units * first, *(units * factor * ms for ms in others)])
    return [*plans, adaptive.plan]


@pytest.mark.parametrize("units", [1, 4, 32])
def test_units_of_a_workload_change_no_plan(units):
    costs = [COST, COST]
    adaptive, _ = planner(costs, units)
    found = [plan.tokens for plan in play(adaptive, costs, SLOWER, units)]
    assert found[:4] == [[SEQ_LEN // 2] * 2] * 4
    assert found[-1][0] > found[-1][1]
    ideal = planned([COST, COST.slower(1.3)], "zigzag").tokens
    assert abs(found[-1][0] - ideal[0]) <= TILE


def test_a_gain_that_hops_drown_is_not_followed():
    """Hops that come late belong to a prompt's time, so the same gain is a smaller part of it."""
    costs, dear = [COST, COST], EqualLinks(Link(2000.0, 0.0))
    free, late = planner(costs)[0], planner(costs, links=dear)[0]
    assert play(free, costs, SLOWER)[-1].tokens != play(late, costs, SLOWER)[-1].tokens == [SEQ_LEN // 2] * 2


@pytest.mark.parametrize("units", [1, 4])
def test_hops_weigh_as_much_whatever_the_units(units):
    costs, hop = [COST, COST], EqualLinks(Link(150.0, 0.0))
    one, several = planner(costs, links=hop)[0], planner(costs, units, hop)[0]
    assert [plan.tokens for plan in play(one, costs, SLOWER)] == [
        plan.tokens for plan in play(several, costs, SLOWER, units)
    ]


LEFT_OUT = [1.0, 200.0, 200.0, *[1.0] * 60]
"""Rank 1 is far too slow for a while, and then as fast as ever."""


@pytest.mark.parametrize("probe_after", [16, 40])
def test_a_rank_left_out_is_given_a_tile_once_that_is_a_twentieth_of_the_time_since(probe_after):
    costs = [COST, COST]
    adaptive, _ = planner(costs, probe_after=probe_after)
    plans = play(adaptive, costs, LEFT_OUT)
    tokens = [plan.tokens[1] for plan in plans]
    without = tokens.count(0)
    assert tokens[3 : 3 + without + 2] == [0] * without + [TILE] * 2
    assert tokens[-1] == pytest.approx(SEQ_LEN / 2, abs=TILE)
    alone_ms = busy_ms(costs, plans[3])[0]
    lost_ms = 200 * busy_ms(costs, plans[3 + without])[1] - alone_ms
    assert without == max(probe_after, math.ceil(lost_ms / (0.05 * alone_ms)))


@pytest.mark.parametrize(("probe_after", "room"), [(0, None), (4, TILE - 1)], ids=["never", "no memory"])
def test_a_rank_is_not_tried_out_where_that_is_not_asked_for_or_cannot_be(probe_after, room):
    costs = [COST, RankCost(COST.fixed_ms, COST.token_ms, COST.pair_ms, COST.diagonal_ms)]
    adaptive, _ = planner(costs, probe_after=probe_after)
    play(adaptive, costs, LEFT_OUT[:3])
    if room is None:
        assert {plan.tokens[1] for plan in play(adaptive, costs, [1.0] * 60)} == {0}
    costs[1] = RankCost(COST.fixed_ms, COST.token_ms, COST.pair_ms, COST.diagonal_ms, max_tokens=room)
    adaptive, _ = planner(costs, probe_after=probe_after)
    for plan in play(adaptive, costs, [1.0] * 60):
        assert plan.tokens[1] <= (SEQ_LEN if room is None else 0)


@given(st.floats(0.3, 3.0))
def test_the_plan_of_the_next_prompt_is_the_balanced_one_of_the_present_speeds(factor):
    costs = [COST, COST]
    adaptive, _ = planner(costs)
    last = play(adaptive, costs, [1.0] * 4 + [factor] * 12)[-1]
    ideal = planned([COST, COST.slower(factor)], "zigzag")
    makespans = [
        max(ms * f for ms, f in zip(busy_ms(costs, plan), (1.0, factor), strict=True))
        for plan in (last, ideal)
    ]
    assert makespans[0] <= 1.08 * makespans[1]
    if abs(math.log(factor)) < 0.01:
        assert last.tokens == [SEQ_LEN // 2] * 2
