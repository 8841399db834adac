"""Cutting whole tensors into the ranks' parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ringexp.choices import LAYOUTS
from ringexp.planning import make_plan
from ringexp.ring import loopback
from ringexp.ring.shards import positions, shard

counts = st.lists(st.integers(0, 6), min_size=1, max_size=8).filter(any)


@given(counts, st.sampled_from(sorted(LAYOUTS.names)), st.integers(-3, 2))
def test_a_part_is_what_lies_at_the_ranks_positions(tokens, layout, dim):
    plan = make_plan(sum(tokens), tokens, layout)
    x = torch.arange(2 * plan.seq_len * 3).view(2, plan.seq_len, 3).movedim(1, dim)
    for rank, held in enumerate(plan.q_shards):
        mine = positions(plan, rank)
        assert mine.dtype == torch.long
        assert mine.tolist() == held.positions()
        part = shard(x, plan, rank, dim)
        assert torch.equal(part, x.index_select(dim, mine))
        assert part.is_contiguous()


@pytest.mark.parametrize(("tokens", "copies"), [([4, 4], 1), ([4, 2, 2], 1), ([8, 0], 0)])
def test_what_stands_for_a_ring_copies_what_that_would_send(monkeypatch, tokens, copies):
    made = []
    monkeypatch.setattr(loopback, "lay_out", lambda k, v, shard: made.append(shard.shape))
    k = torch.zeros(1, tokens[0], 2, 4)
    for lays_out in (True, False):
        ring = loopback.LoopbackTransport(lays_out=lays_out)
        assert next(ring.circulate(k, k, loopback.RingPass(tokens))).source == 0
    assert made == [(2, *k.shape)] * copies
