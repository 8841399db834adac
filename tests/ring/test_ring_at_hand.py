"""Every rank of a ring in one process: all shards are at hand, so any plan is tried in milliseconds."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringexp.choices import LAYOUTS
from ringexp.kernels import Kernel, get_kernel
from ringexp.kernels.oracle import block_fp64
from ringexp.planning import BlockShape, Mask, Plan, make_plan
from ringexp.ring.attention import ring_attention
from ringexp.ring.clock import NoClock
from ringexp.ring.context import RingContext
from ringexp.ring.decode import gather, stored
from ringexp.ring.loopback import LoopbackTransport
from ringexp.ring.pending import PendingShard
from ringexp.ring.route import Route
from ringexp.ring.transport import RingPass
from support.joining import joining_kernel
from support.shapes import shape_of

HEADS, KV_HEADS, DIM = 4, 2, 8


class AtHand(LoopbackTransport):
    """Hands a rank what the others would send, and checks what it sends itself."""

    def __init__(self, plan: Plan, rank: int, k: torch.Tensor, v: torch.Tensor) -> None:
        super().__init__(rank)
        self.plan, self.place, self.whole, self.ended = plan, rank, torch.stack((k, v)), False

    def of(self, positions: list[int]) -> torch.Tensor:
        return self.whole[:, :, positions]

    def circulate(self, k, v, ring_pass):
        assert list(ring_pass.tokens) == self.plan.kv_tokens
        assert torch.equal(torch.stack((k, v)), self.of(self.plan.kv_shards[self.place].positions()))
        for source in self.arrival_order(ring_pass.tokens):
            shard = self.of(self.plan.kv_shards[source].positions())
            if source != self.place:
                unneeded = slice(ring_pass.needed_of(self.place, source).stop, None)
                shard[:, :, unneeded] = float("nan")  # a transport may leave it out
            receive = (lambda: (k, v)) if source == self.place else lambda shard=shard: shard
            yield PendingShard(source, receive)
        self.ended = True

    def exchange(self, sends, receives, sizes):
        queries, keys = self.plan.q_shards, self.plan.kv_shards
        for peer in range(self.plan.world_size):
            held = set(keys[peer].positions())
            mine = [p for p in queries[self.place].positions() if p in held]
            assert peer == self.place or sizes[self.place][peer] == self.of(mine).nbytes
            assert (peer in sends) == (bool(mine) and peer != self.place)
            if peer in sends:
                assert torch.equal(sends[peer], self.of(mine))
            held = set(keys[self.place].positions())
            theirs = [p for p in queries[peer].positions() if p in held]
            assert (peer in receives) == (bool(theirs) and peer != self.place)
            if peer in receives:
                receives[peer].copy_(self.of(theirs))


class Noting(NoClock):
    """Notes what it is told, in order; a wait as the rank that is waited for. most: shards taken at once."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.most = 0

    def computes_with(self, sources, waited=None):
        self.told += sources
        self.most = max(self.most, len(sources))

    @contextmanager
    def waiting(self, source):
        self.told.append(source)
        yield

    def attended(self):
        self.told.append("attended")


def attended(
    plan: Plan, kernel: Kernel, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, announces: bool
) -> torch.Tensor:
    """Return the whole output [B, S, H, D], of all ranks and chunks.

    announces: shards are said to come heads after heads. Else each is computed with as soon as it is there.
    """
    whole = torch.full_like(q, float("nan"))
    for part in plan.chunks or (plan,):
        for rank in part.members:
            mine = part.q_shards[rank].positions()
            keys = part.kv_shards[rank].positions() if part.aligned else mine
            transport = AtHand(part, rank, k[:, : part.seq_len], v[:, : part.seq_len])
            transport.announces = announces
            ring = RingContext(part, rank, transport, kernel, Noting())
            out = ring_attention(q[:, mine], k[:, keys], v[:, keys], ring)
            assert transport.ended
            resharded = [] if part.aligned else [rank]
            sources = Route.of(part.kv_tokens, rank).sources
            assert ring.clock.told == [*resharded, *sources, "attended"]
            assert ring.clock.most == 1 or (announces and kernel.fused_limits)
            assert out.is_contiguous()
            whole[:, mine] = out
    return whole


def exact(plan: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the oracle's output [B, S, H, D], each sequence computed without its padding; 0 for padding."""
    whole = torch.zeros_like(q, dtype=torch.float64)
    for sequence in range(q.shape[0]):
        start = plan.starts[sequence] if plan.starts else 0
        real = [x[sequence : sequence + 1, start:].double().transpose(1, 2) for x in (q, k, v)]
        whole[sequence, start:] = block_fp64(*real, shape_of(plan.mask.is_causal), DIM**-0.5)[0].transpose(
            1, 2
        )[0]
    return whole


def inputs(batch: int, seq_len: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, seq_len, n, DIM, generator=generator) for n in (HEADS, KV_HEADS, KV_HEADS)]


@st.composite
def plans(draw):
    """Draw a batch and a plan of up to five ranks: padded, in chunks, keys/values apart, without a mask."""
    unit = draw(st.sampled_from([1, 4, 8]))
    tokens = [unit * n for n in draw(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any))]
    seq_len, layout, batch = (
        sum(tokens),
        draw(st.sampled_from(sorted(LAYOUTS.names))),
        draw(st.integers(1, 4)),
    )
    starts: list[int] = []
    if draw(st.booleans()):
        starts = draw(st.lists(st.integers(0, seq_len - 1), min_size=batch, max_size=batch))
    kind = draw(st.sampled_from(["tokens", "full", "kv", "chunks"]))
    if kind == "chunks" and min(n for n in tokens if n) >= 2:
        return batch, make_plan(seq_len, tokens, layout, tile=4, chunks=2, starts=starts)
    if kind == "kv" and all(tokens):
        return batch, make_plan(seq_len, tokens, layout, split="kv", starts=starts)
    return batch, make_plan(seq_len, tokens, layout, mask=Mask.of(kind != "full"), starts=starts)


@settings(deadline=None, max_examples=40)
@given(plans(), st.booleans(), st.booleans())
def test_every_plan_attends_to_all_that_is_no_padding(case, joins, announces):
    batch, plan = case
    kernel = joining_kernel() if joins else get_kernel("sdpa", "cpu", torch.float32, DIM)
    q, k, v = inputs(batch, plan.seq_len)
    with torch.inference_mode():
        out = attended(plan, kernel, q, k, v, announces)
    assert (out - exact(plan, q, k, v)).abs().max() < 2e-6


def test_a_given_scale_takes_the_place_of_the_default():
    plan, (q, k, v) = make_plan(9, [9]), inputs(1, 9)
    ring = RingContext(plan, 0, LoopbackTransport(), get_kernel("sdpa", "cpu", torch.float32, DIM), NoClock())
    found = ring_attention(q, k, v, ring, softmax_scale=0.7)
    expected = block_fp64(*(x.double().transpose(1, 2) for x in (q, k, v)), BlockShape.CAUSAL, 0.7)[
        0
    ].transpose(1, 2)
    assert (found - expected).abs().max() < 2e-6


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9).filter(any))
def test_a_ring_passes_over_empty_ranks_and_comes_round(tokens):
    members = [rank for rank, count in enumerate(tokens) if count]
    for place, rank in enumerate(members):
        route = Route.of(tokens, rank)
        assert route.sources == [members[place - hop] for hop in range(len(members))]
        assert (route.hops, route.sources[0]) == (len(members) - 1, rank)
        assert (route.before, route.after) == (members[place - 1], members[(place + 1) % len(members)])


def test_what_stands_for_a_ring_hands_out_shards_of_their_length_made_once():
    tokens, (_, k, v) = [5, 0, 3, 8], inputs(2, 3)
    ring = LoopbackTransport(rank=2)
    first, second = (
        [(shard.source, shard.receive()) for shard in ring.circulate(k, v, RingPass(tokens))]
        for _ in range(2)
    )
    assert [source for source, _ in first] == [2, 0, 3]
    assert all(torch.equal(x, y) for x, y in zip(first[0][1], (k, v), strict=True))
    for (source, shard), (_, again) in zip(first[1:], second[1:], strict=True):
        assert again is shard
        repeated = [i % 3 for i in range(tokens[source])]
        assert torch.equal(shard, torch.stack((k, v))[:, :, repeated])


@given(st.integers(0, 9), st.integers(1, 5), st.integers(0, 20))
def test_a_cache_has_new_tokens_behind_those_it_held(held, length, capacity):
    _, k, new = inputs(2, held + length)
    cache = stored(None, k[:, :held], 0, max(capacity, held + length))
    assert cache.shape[1] == max(capacity, held + length)
    assert stored(cache, new[:, :length], held, 0) is cache or not held
    grown = stored(cache, new[:, :length], held, capacity)
    assert torch.equal(grown[:, :held], k[:, :held])
    assert torch.equal(grown[:, held : held + length], new[:, :length])
    assert stored(None, new, 0, capacity).shape[1] == max(capacity, held + length)


def test_what_a_ring_of_one_gathers_is_its_own():
    x = torch.arange(6.0).view(2, 3)
    gathered = gather(x, [0, 4], LoopbackTransport(rank=1), NoClock())
    assert torch.equal(gathered, x.view(1, 2, 3))
