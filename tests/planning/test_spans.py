"""Spans and the shards made of them: what lies where, and what is no shard."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.choices import LAYOUTS
from ringexp.errors import UserError
from ringexp.planning import Shard, Span, make_plan, runs
from ringexp.planning.chunks import chunk_counts, joined

layouts = st.sampled_from(sorted(LAYOUTS.names))


@st.composite
def shards(draw):
    """Draw a shard of up to four spans that do not touch."""
    bounds = sorted(draw(st.sets(st.integers(0, 30), max_size=8)))
    return Shard(tuple(Span(*pair) for pair in zip(bounds[::2], bounds[1::2], strict=False)))


@given(shards(), st.integers(0, 31))
def test_what_follows_a_start_is_a_suffix_of_the_shard(shard, start):
    before, later = shard.since(start)
    assert later.positions() == [position for position in shard.positions() if position >= start]
    assert shard.positions()[before:] == later.positions()
    assert shard.last == max(shard.positions(), default=-1)
    for offset, span in shard.placed():
        assert shard.positions()[offset : offset + len(span)] == list(range(span.start, span.stop))


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (4, 3), (-1, 3)])
def test_a_span_holds_at_least_one_position(start, stop):
    with pytest.raises(ValueError, match="a span needs 0 <= start < stop"):
        Span(start, stop)
    assert len(Span(0, 1)) == 1


@pytest.mark.parametrize("spans", [((0, 4), (3, 6)), ((4, 6), (0, 2)), ((0, 2), (4, 8), (7, 9))])
def test_the_spans_of_a_shard_are_sorted_and_disjoint(spans):
    with pytest.raises(ValueError, match="sorted and disjoint"):
        Shard(tuple(Span(*span) for span in spans))
    assert Shard((Span(0, 4), Span(4, 6))).num_tokens == 6


@given(st.lists(st.integers(0, 2), max_size=12))
def test_runs_are_neighbours_that_start_alike(starts):
    found = runs(starts)
    assert [start for sequences, start in found for _ in starts[sequences]] == starts
    assert all(set(starts[sequences]) == {start} for sequences, start in found)
    assert all(a[1] != b[1] for a, b in pairwise(found))


@given(shards(), shards())
def test_joined_shards_hold_both_in_as_few_spans_as_can_be(left, right):
    after = Shard(tuple(Span(span.start + 40, span.stop + 40) for span in right.spans))
    touching = Shard(
        tuple(Span(span.start + left.last + 1, span.stop + left.last + 1) for span in right.spans)
    )
    for later in (after, touching):
        both = joined(left, later)
        assert both.positions() == left.positions() + later.positions()
        assert all(a.stop < b.start for a, b in pairwise(both.spans))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any), layouts)
def test_no_two_pieces_of_a_rank_touch_and_zigzag_pieces_are_halves(tokens, layout):
    for shard, count in zip(make_plan(sum(tokens), tokens, layout).q_shards, tokens, strict=True):
        assert all(a.stop < b.start for a, b in pairwise(shard.spans))
        if len(shard.spans) == 2:
            head, tail = map(len, shard.spans)
            assert (head, tail) == (count - count // 2, count // 2)
        else:
            assert len(shard.spans) == (count > 0)


@pytest.mark.parametrize("tokens", [[], [0], [0, 0]])
@pytest.mark.parametrize("layout", sorted(LAYOUTS.names))
def test_a_ring_without_tokens_is_refused(layout, tokens):
    with pytest.raises(UserError, match="at least 0, and one above"):
        make_plan(0, tokens, layout)


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=5).filter(any),
    st.integers(1, 6),
    st.sampled_from([1, 4, 16]),
)
def test_chunks_are_even_to_a_tile(tokens, chunks, tile):
    least = min(count for count in tokens if count)
    if least < chunks:
        return
    counts = chunk_counts(tokens, chunks, tile)
    assert len(counts) == chunks
    assert [sum(of_rank) for of_rank in zip(*counts, strict=True)] == tokens
    unit = tile if least // chunks >= tile else 1
    for of_rank, count in zip(zip(*counts, strict=True), tokens, strict=True):
        assert all((part > 0) == (count > 0) for part in of_rank)
        assert all(abs(part - count / chunks) < 2 * unit for part in of_rank)
        assert not any(part % unit for part in of_rank[:-1])
