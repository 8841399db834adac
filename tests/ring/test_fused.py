"""Which blocks share a launch, for any plan: every one is in one, and only where the kernel allows it."""

from hypothesis import given
from hypothesis import strategies as st

from ringexp.kernels import FusedLimits
from ringexp.planning import BlockShape, Mask, make_plan
from ringexp.ring.fused import launches
from ringexp.ring.route import Route

TILE = 4


@st.composite
def rings(draw):
    unit = draw(st.sampled_from([1, TILE, 2 * TILE]))
    tokens = [unit * draw(st.integers(0, 5)) for _ in range(draw(st.integers(1, 6)))]
    if not any(tokens):
        tokens[0] = unit
    layout = draw(st.sampled_from(["zigzag", "contiguous"]))
    plan = make_plan(sum(tokens), tokens, layout, mask=Mask.of(draw(st.booleans())))
    return plan, draw(st.sampled_from(plan.members)), draw(st.integers(0, max(plan.seq_len // 2, 0)))


@given(rings(), st.integers(1, 4))
def test_every_block_is_in_one_launch_that_takes_it(ring, spans):
    plan, rank, start = ring
    sources = Route.of(plan.kv_tokens, rank).sources
    alone = [part for launch in launches(plan, rank, sources, start, None) for part in launch.parts]
    found = launches(plan, rank, sources, start, FusedLimits(spans, TILE))
    assert sorted(map(repr, alone)) == sorted(repr(part) for launch in found for part in launch.parts)
    for launch in found:
        assert len(launch.parts) <= spans
        first = launch.first
        for _, block in launch.parts[1:]:
            assert block.shape is BlockShape.FULL
            assert block.q_stop == first.q_stop
            assert (block.q_start - first.q_start) % TILE == block.kv_len % TILE == 0
            assert block.q_start >= first.q_start


def test_whole_tiles_make_one_launch_of_a_zigzag_ring_of_four():
    plan = make_plan(16 * TILE, [2 * TILE, 6 * TILE, 4 * TILE, 4 * TILE])
    for rank in range(4):
        (launch,) = launches(plan, rank, Route.of(plan.kv_tokens, rank).sources, 0, FusedLimits(4, TILE))
        assert launch.first.shape is BlockShape.CAUSAL
        assert launch.rows == (0, plan.tokens[rank])
