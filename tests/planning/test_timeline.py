"""The timeline of a ring against its laws, and against one played event by event from lists of blocks."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.planning import (
    BlockShape,
    EqualLinks,
    Link,
    Mask,
    NodeLinks,
    Plan,
    PlanRequest,
    RankCost,
    balance,
    balanced_plan,
    carried_ms,
    make_plan,
    predicted_ms,
    simulate,
)
from ringexp.planning.work import compute_ms

costs_of_a_rank = st.builds(
    RankCost,
    fixed_ms=st.floats(0, 5),
    token_ms=st.floats(0, 1),
    pair_ms=st.floats(0.0001, 0.1),
    diagonal_ms=st.floats(0, 0.05),
    hop_ms=st.floats(0, 2),
    hop_token_ms=st.floats(0, 0.1),
)
equal_links = st.builds(EqualLinks, st.builds(Link, st.floats(0, 20), st.floats(0, 2)), st.booleans())


@st.composite
def rings(draw, causal=None):
    """A plan, its costs and its links, of up to six ranks; some may hold nothing."""
    tokens = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any))
    layout = draw(st.sampled_from(["zigzag", "contiguous"]))
    is_causal = draw(st.booleans()) if causal is None else causal
    plan = make_plan(sum(tokens), tokens, layout, mask=Mask.of(is_causal))
    costs = [draw(costs_of_a_rank) for _ in tokens]
    links = draw(equal_links)
    if draw(st.booleans()):
        nodes = [draw(st.integers(0, 1)) for _ in tokens]
        within = [Link(draw(st.floats(0, 5)), draw(st.floats(0, 1))) for _ in tokens]
        links = NodeLinks(nodes, within, links.link)
    return plan, costs, links


prefetches = st.one_of(st.none(), st.integers(0, 4))


def event_by_event(plan, costs, links, prefetch_hops):
    """When each rank is done: things happen as soon as all that they need has happened."""
    members = plan.members
    size = len(members)
    into = dict(zip(members, links.into(members), strict=True))
    done: dict[tuple[str, int, int], float] = {}  # (what, rank, hop) -> when

    def needs(what: str, rank: int, hop: int) -> tuple[list[tuple[str, int, int]], float]:
        """Return the events that have to be over before, and the time that it takes from then."""
        place = members.index(rank)
        before, after = members[place - 1], members[(place + 1) % size]
        source = members[place - hop]
        if what == "linear":
            return [], costs[rank].fixed_ms + costs[rank].token_ms * plan.tokens[rank]
        if what == "posted":
            if prefetch_hops is None or hop <= prefetch_hops:
                return [("linear", rank, 0)], 0.0
            if prefetch_hops:
                return [("taken up", rank, hop - prefetch_hops)], 0.0
            return [("computed", rank, hop - 1)], 0.0
        if what == "ready":
            return [("posted", rank, hop), ("arrived", rank, hop - 1)], 0.0
        if what == "received":
            count = len(plan.needed(rank, source)) if links.direct else plan.kv_tokens[source]
            ends = [("ready", rank, hop), ("ready", before, hop)]
            if links.direct:
                ends = [("arrived", rank, hop - 1), ("posted", source, hop)]
                ends += [("posted", rank, hop)] if prefetch_hops == 0 else []
            return ends, into[rank].time_ms(count) if count else 0.0
        if what == "arrived":
            if hop == 0:
                return [("linear", rank, 0)], 0.0
            sent = [] if links.direct else [("received", after, hop)]
            return [("received", rank, hop), *sent], 0.0
        if what == "taken up":
            earlier = [("computed", rank, hop - 1)] if hop else []
            return [("arrived", rank, hop), *earlier], 0.0
        blocks = plan.blocks(rank, source)
        work = sum(
            (costs[rank].pair_ms + costs[rank].diagonal_ms * (b.shape is BlockShape.CAUSAL)) * b.pairs
            for b in blocks
        )
        if blocks and hop:
            work += costs[rank].hop_ms + costs[rank].hop_token_ms * plan.tokens[rank]
        return [("taken up", rank, hop)], work

    kinds = ("linear", "posted", "ready", "received", "arrived", "taken up", "computed")
    waiting = {
        (what, rank, hop)
        for what in kinds
        for rank in members
        for hop in range(size)
        if (hop or what in ("linear", "arrived", "taken up", "computed")) and (not hop or what != "linear")
    }
    while waiting:
        happening = {each for each in waiting if all(need in done for need in needs(*each)[0])}
        assert happening, "the ring is stuck"
        for each in happening:
            before, takes = needs(*each)
            done[each] = max((done[need] for need in before), default=0.0) + takes
        waiting -= happening
    return [done["computed", rank, size - 1] for rank in members]


@pytest.mark.parametrize("prefetch_hops", [None, 0, 1, 2])
@given(ring=rings())
def test_a_timeline_is_what_happens_event_by_event(ring, prefetch_hops):
    plan, costs, links = ring
    found = simulate(plan, costs, links, prefetch_hops)
    assert found.compute_ends[-1] == pytest.approx(event_by_event(plan, costs, links, prefetch_hops))
    assert predicted_ms(plan, costs, links, prefetch_hops) == found.latency_ms


@given(rings(), prefetches)
def test_no_rank_is_done_before_it_has_computed_all_nor_before_all_shards_have_come(ring, prefetch_hops):
    plan, costs, links = ring
    found = simulate(plan, costs, links, prefetch_hops)
    members = plan.members
    for place, (rank, hop) in enumerate(zip(members, links.into(members), strict=True)):
        blocks = [block for source in members for block in plan.blocks(rank, source)]
        pairs = sum(block.pairs for block in blocks)
        diagonal = sum(block.pairs for block in blocks if block.shape is BlockShape.CAUSAL)
        pure = costs[rank].time_ms(plan.tokens[rank], pairs, diagonal)
        others = [source for source in members if source != rank]
        counts = [len(plan.needed(rank, each)) if links.direct else plan.kv_tokens[each] for each in others]
        carried = sum(hop.time_ms(count) for count in counts if count)
        assert found.busy_ms()[place] >= pure * (1 - 1e-9)
        assert found.compute_ends[-1][place] >= max(found.busy_ms()[place], carried) * (1 - 1e-9)
        waits = sum(each.wait_ms for each in found.hops(place))
        assert found.compute_ends[-1][place] == pytest.approx(found.busy_ms()[place] + waits)
    assert compute_ms(plan, costs, members) == pytest.approx(found.busy_ms())
    assert found.latency_ms >= carried_ms(plan, links) * (1 - 1e-9)


@given(st.lists(costs_of_a_rank, min_size=1, max_size=6), st.integers(16, 400), equal_links, prefetches)
def test_a_balanced_plan_is_no_later_than_water_filling_among_any_number_of_the_fastest(
    costs, seq_len, links, prefetch_hops
):
    alone = [cost.time_ms(seq_len, seq_len**2 / 2, seq_len**2 / 2) for cost in costs]
    fastest = sorted(range(len(costs)), key=lambda rank: (alone[rank], -rank))
    found = balanced_plan(PlanRequest(seq_len, 4, prefetch_hops=prefetch_hops), costs, links)
    for count in range(1, len(costs) + 1):
        ranks = sorted(fastest[:count])
        some = balance(
            [costs[rank].with_hops(count - 1) for rank in ranks], seq_len, 4, "zigzag", Mask.causal()
        )
        tokens = [some[ranks.index(rank)] if rank in ranks else 0 for rank in range(len(costs))]
        other_ms = predicted_ms(make_plan(seq_len, tokens), costs, links, prefetch_hops)
        assert predicted_ms(found, costs, links, prefetch_hops) <= other_ms


@given(rings(), prefetches, st.floats(0, 1))
def test_a_faster_link_makes_no_ring_later(ring, prefetch_hops, part):
    plan, costs, links = ring

    def quicker(link: Link) -> Link:
        return Link(part * link.latency_ms, part * link.unit_ms)

    if isinstance(links, NodeLinks):
        better = NodeLinks(links.nodes, [quicker(link) for link in links.within], quicker(links.across))
    else:
        better = replace(links, link=quicker(links.link))
    slower_ms = predicted_ms(plan, costs, links, prefetch_hops)
    assert predicted_ms(plan, costs, better, prefetch_hops) <= slower_ms * (1 + 1e-9)


@given(rings(), st.integers(0, 4))
def test_posting_fewer_hops_ahead_makes_no_ring_earlier(ring, prefetch_hops):
    plan, costs, links = ring
    later = predicted_ms(plan, costs, links, prefetch_hops)
    assert later >= predicted_ms(plan, costs, links, prefetch_hops + 1)
    assert later >= predicted_ms(plan, costs, links)


@given(rings(causal=False), st.integers(0, 5), prefetches)
def test_where_a_ring_begins_to_be_counted_changes_nothing(ring, turn, prefetch_hops):
    plan, costs, links = ring
    if isinstance(links, NodeLinks):
        links = EqualLinks(links.across)
    turn %= len(costs)
    tokens = plan.tokens[turn:] + plan.tokens[:turn]
    turned = make_plan(plan.seq_len, tokens, plan.layout, mask=Mask.full())
    turned_ms = predicted_ms(turned, costs[turn:] + costs[:turn], links, prefetch_hops)
    assert turned_ms == pytest.approx(predicted_ms(plan, costs, links, prefetch_hops))


@given(st.integers(2, 8), costs_of_a_rank, equal_links, prefetches)
def test_equal_ranks_with_equal_shards_do_the_same_whatever_their_place(ranks, cost, links, prefetch_hops):
    plan = make_plan(24 * ranks, [24] * ranks, mask=Mask.full())
    found = simulate(plan, [cost] * ranks, links, prefetch_hops)
    assert found.compute_ends[-1] == pytest.approx([found.latency_ms] * ranks)


@pytest.mark.parametrize(
    ("speeds", "bound"), [((2, 1), 0.75), ((10, 1), 0.55), ((1, 1, 0.5, 0.25), 0.69)], ids=str
)
def test_a_barrier_at_each_hop_caps_capacity_efficiency(speeds, bound):
    costs = [RankCost(0.0, 0.0, 1 / speed) for speed in speeds]
    seq_len = 110_000
    plan = make_plan(seq_len, balance(costs, seq_len, 1, "zigzag", Mask.causal()))
    ideal_ms = seq_len * (seq_len + 1) / 2 / sum(speeds)
    free = EqualLinks(Link(0.0, 0.0))
    assert ideal_ms / predicted_ms(plan, costs, free, prefetch_hops=0) == pytest.approx(bound, abs=0.005)
    assert ideal_ms / predicted_ms(plan, costs, free) == pytest.approx(1.0, abs=0.001)


def test_one_hop_ahead_loses_less_than_a_barrier():
    """A rank waits for the hop before the one that its neighbours are at."""
    costs = [RankCost(0.0, 0.0, 1 / speed) for speed in (1, 1, 0.5, 0.25)]
    plan = make_plan(110_000, balance(costs, 110_000, 1, "zigzag", Mask.causal()))
    free = EqualLinks(Link(0.0, 0.0))
    slower = predicted_ms(plan, costs, free, 1) / predicted_ms(plan, costs, free)
    assert slower == pytest.approx(12 / 11, rel=1e-3)


def test_direct_copies_make_no_detour_over_a_slow_rank():
    """The shard of a rank next but one waits for nobody between."""
    plan = make_plan(300, [100] * 3, mask=Mask.full())
    costs = [RankCost(0.0, 0.0, 1e-3), RankCost(500.0, 0.0, 1e-3), RankCost(0.0, 0.0, 1e-3)]
    sent_on, direct = EqualLinks(Link(1.0, 0.0)), EqualLinks(Link(1.0, 0.0), direct=True)
    arrival = {
        hop.direct: {each.source: each.arrival for each in simulate(plan, costs, hop).hops(2)}
        for hop in (sent_on, direct)
    }
    assert arrival[False][0] == pytest.approx(502.0)
    assert arrival[True][1] == pytest.approx(501.0)
    assert arrival[True][0] == pytest.approx(502.0)  # in the order of the ring, after the slow rank's


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_a_large_ring_needs_no_lists_of_blocks(monkeypatch, layout):
    """There would be as many as ranks squared."""
    monkeypatch.setattr(Plan, "blocks", lambda *_: pytest.fail("blocks were listed"))
    costs = [RankCost(0.1, 1e-5, 1e-7 * (1 + rank % 3), hop_ms=0.01) for rank in range(100)]
    plan = balanced_plan(PlanRequest(1 << 16, 16, layout), costs, EqualLinks(Link(0.02, 1e-4)))
    assert simulate(plan, costs, EqualLinks(Link(0.02, 1e-4))).latency_ms > 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_a_ring_of_a_thousand_ranks_is_planned_and_played_in_seconds(layout):
    """5 s of a core, and room for a slow one."""
    costs = [RankCost(0.1, 1e-5, 1e-7 * (1 + rank % 3), hop_ms=0.01) for rank in range(1024)]
    began = time.process_time()
    plan = balanced_plan(PlanRequest(1 << 20, 16, layout), costs, EqualLinks(Link(0.02, 1e-4)))
    simulate(plan, costs, EqualLinks(Link(0.02, 1e-4)))
    assert time.process_time() - began < 20
