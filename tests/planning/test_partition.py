"""From a request and costs to the plan."""

import pytest

from ringexp.choices import PartitionerSpec, Registry
from ringexp.errors import UserError
from ringexp.planning import EqualLinks, Link, Mask, PlanRequest, RankCost, partition, place_tokens, plan_for


class Costs:
    """A source that knows costs only."""

    percentages = (100.0, 50.0, 25.0)

    def __init__(self, *costs: RankCost) -> None:
        self._costs = costs

    def costs(self, mask: Mask) -> list[RankCost]:
        return list(self._costs)

    lut = formula = lambda self: []


BALANCED = PlanRequest(4096, 16, partitioner="balanced")
EQUAL = Costs(*[RankCost(0.0, 0.0, 1e-6)] * 3)


def tokens(source, **known):
    return plan_for(BALANCED, source, **known).tokens


def test_cheap_hops_leave_all_ranks_in_the_ring():
    assert min(tokens(EQUAL, links=EqualLinks(Link(0.01, 0.0)))) > 0


def test_ranks_whose_hops_do_not_pay_are_left_out():
    assert sorted(tokens(EQUAL, links=EqualLinks(Link(1000.0, 0.0)))) == [0, 0, 4096]


def test_the_slowest_rank_is_left_out_first():
    costs = Costs(RankCost(0.0, 0.0, 2e-6), RankCost(0.0, 0.0, 9e-6), RankCost(0.0, 0.0, 2e-6))
    assert tokens(costs, links=EqualLinks(Link(2.5, 0.0)))[1] == 0


def test_a_rank_stays_where_the_others_have_no_memory():
    room = [2048, 2048, 0]
    assert tokens(EQUAL, links=EqualLinks(Link(1000.0, 0.0)), max_tokens=room) == room


def test_memory_is_kept_to_and_its_lack_named():
    assert tokens(EQUAL, max_tokens=[None, 1024, 512]) == [2560, 1024, 512]
    with pytest.raises(UserError, match=r"1024 \+ 1024 \+ 512 = 2560 tokens at most"):
        tokens(EQUAL, max_tokens=[1024, 1024, 512])


def first_half(request, source, max_tokens, links):
    """Give half of the tokens to rank 0, and the rest to rank 1."""
    half = request.seq_len // 2
    return place_tokens(request, [half, request.seq_len - half, 0])


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_partitioner_from_outside_makes_the_plan_itself(monkeypatch, chunks):
    monkeypatch.setattr(partition, "first_half", first_half, raising=False)
    spec = PartitionerSpec(
        name="halves", summary="", implementation="ringexp.planning.partition:first_half", makes_plan=True
    )
    monkeypatch.setattr(partition, "PARTITIONERS", Registry("partitioner", PartitionerSpec, [spec]))
    plan = plan_for(PlanRequest(4096, 16, chunks=chunks, partitioner="halves"), EQUAL)
    assert plan.tokens == [2048, 2048, 0]
    assert len(plan.chunks) == (chunks if chunks > 1 else 0)
