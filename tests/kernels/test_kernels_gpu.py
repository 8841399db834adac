"""Every CUDA kernel against the float64 oracle, Triton compiled."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise, product

import pytest
import torch

from kernels.cases import FLOAT32_EPS, LIBRARY_LSE_SLACK, Case, inputs, measure, shape_cases
from ringexp.choices import KERNELS
from ringexp.errors import UserError
from ringexp.kernels import (
    ArrivalFlags,
    Destination,
    KeySpan,
    OnlineSoftmax,
    Remote,
    Sending,
    get_kernel,
    oracle,
)
from ringexp.planning import BlockShape, Mask, make_plan
from ringexp.ring import cuda_driver
from ringexp.ring.attention import ring_attention
from ringexp.ring.clock import CudaClock
from ringexp.ring.context import RingContext
from ringexp.ring.iteration import captured
from ringexp.ring.loopback import LoopbackTransport
from ringexp.ring.pending import PendingShard
from ringexp.ring.shards import positions, shard
from support.shapes import shape_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FP16, BF16 = torch.float16, torch.bfloat16
OURS = ("hopper", "triton")
HELD_S = 0.02
LONG_CASES = [
    Case(q_len, kv_len, q_len == kv_len, dtype, 1, 8, num_kv_heads, head_dim)
    for dtype in (FP16, BF16)
    for q_len, kv_len in ((1000, 1000), (1000, 4113), (4113, 4113), (4113, 1000))
    for num_kv_heads, head_dim in ((8, 64), (2, 128))
]
CASES = [
    *shape_cases(),
    *LONG_CASES,
    Case(300, 300, True, BF16, head_dim=96),
    Case(300, 300, True, BF16, head_dim=256),
    Case(300, 300, True, BF16, head_dim=100),
    Case(300, 300, True, head_dim=256),
    Case(1000, 1000, True, head_dim=128),
]


def kernel_or_skip(name, case):
    try:
        return get_kernel(name, "cuda", case.dtype, case.head_dim)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", KERNELS.names)
def test_matches_the_oracle(name, case):
    kernel_or_skip(name, case)
    measure(name, case, "cuda").check(case, 0.0 if name in OURS else LIBRARY_LSE_SLACK)


@pytest.mark.parametrize("name", KERNELS.names)
def test_output_lies_in_memory_as_blhd(name):
    case = Case(300, 300, True, BF16)
    out, _ = kernel_or_skip(name, case).block(*inputs(case, "cuda"), BlockShape.CAUSAL, 0.125)
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("name", KERNELS.names)
def test_merged_halves_match_the_oracle(name):
    case = Case(1000, 2001, dtype=BF16)
    q, k, v = inputs(case, "cuda")
    kernel = kernel_or_skip(name, case)
    state = OnlineSoftmax(2, 4, 1000, 64, "cuda")
    for keys in (slice(0, 777), slice(777, None)):
        state.merge(*kernel.block(q, k[:, :, keys], v[:, :, keys], BlockShape.FULL, 0.125))
    out, lse = oracle.block_fp64(q, k, v, BlockShape.FULL, 0.125)
    assert (state.lse - lse).abs().max() <= 32 * FLOAT32_EPS
    error = (state.output(BF16).transpose(1, 2) - out).abs().max()
    assert error <= torch.finfo(BF16).eps * v.abs().max()


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_merging_within_the_kernel_is_as_exact_as_one_block(num_parts, head_dim):
    """In ring order: the diagonal block on all rows, then full ones on the tail only."""
    kernel = kernel_or_skip("hopper", Case(1, 1, dtype=BF16, head_dim=head_dim))
    case = Case(1001, 1001, True, BF16, head_dim=head_dim)
    q, k, v = inputs(case, "cuda")
    scale = head_dim**-0.5
    exact = torch.cat(
        [
            oracle.block_fp64(q[:, :, :500], k[:, :, :500], v[:, :, :500], BlockShape.CAUSAL, scale)[0],
            oracle.block_fp64(q, k, v, BlockShape.CAUSAL, scale)[0][:, :, 500:],
        ],
        dim=2,
    )
    blocks = [(0, 500), (500, 1001), *[(500, 1001)] * (num_parts - 1)]
    state = OnlineSoftmax(2, 4, 1001, head_dim, "cuda", blocks=blocks, dtype=BF16)
    tail, bounds = slice(500, None), torch.linspace(0, 500, num_parts).int().tolist()
    state.attend(
        kernel,
        q[:, :, :500],
        [KeySpan(k[:, :, :500], v[:, :, :500])],
        BlockShape.CAUSAL,
        scale,
        slice(0, 500),
    )
    state.attend(
        kernel, q[:, :, tail], [KeySpan(k[:, :, tail], v[:, :, tail])], BlockShape.CAUSAL, scale, tail
    )
    for start, stop in pairwise(bounds):
        state.attend(
            kernel, q[:, :, tail], [KeySpan(k[:, :, start:stop], v[:, :, start:stop])], False, scale, tail
        )
    single = kernel.block(q, k, v, BlockShape.CAUSAL, scale)[0]

    def rms(out):
        return (out.double() - exact).square().mean().sqrt().item()

    assert rms(state.output(BF16).transpose(1, 2)) <= 1.1 * rms(single)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 128), (8, 2, 128), (8, 2, 64)])
@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pieces", [None, 1, 2])
def test_rings_whose_blocks_are_joined_are_as_exact_as_one_block(
    pieces, causal, layout, ranks, heads, kv_heads, head_dim
):
    """Uneven rings, rank by rank, with what would arrive at hand, or coming in pieces meanwhile."""
    kernel = kernel_or_skip("hopper", Case(1, 1, dtype=BF16, head_dim=head_dim))
    tokens = [256 * (1 + (5 * rank) % 7) for rank in range(ranks)]
    plan = make_plan(sum(tokens), tokens, layout, mask=Mask.of(causal))
    case = Case(plan.seq_len, plan.seq_len, causal, BF16, 1, heads, kv_heads, head_dim)
    whole = [x.transpose(1, 2) for x in inputs(case, "cuda")]
    shards = [[shard(x, plan, rank) for x in whole] for rank in range(ranks)]
    outputs = []
    for again, rank in product((False, True), range(ranks)):  # first for compiling, which may take long
        transport = AtHand(rank, [torch.stack(found[1:]) for found in shards], pieces, held=again)
        clock = CudaClock()
        clock.start()
        begun = torch.cuda.current_stream().record_event()
        out = ring_attention(*shards[rank], RingContext(plan, rank, transport, kernel, clock))
        clock.stop()
        if again:
            begun.synchronize()
            time.sleep(HELD_S)
            transport.release()
        waited = sum(hop.wait_ms for hop in clock.read().hops)
        if again:
            outputs.append(out)
            if transport.awaited and (rank or layout == "zigzag" or not causal):
                # On average: programs whose tiles see none of it do not wait.
                assert waited > HELD_S * 1e3 / 8
    exact = oracle.block_fp64(*(x.transpose(1, 2) for x in whole), shape_of(causal), head_dim**-0.5)[
        0
    ].transpose(1, 2)
    single = kernel.block(*(x.transpose(1, 2) for x in whole), shape_of(causal), head_dim**-0.5)[0].transpose(
        1, 2
    )
    found = torch.empty_like(single)
    for rank, out in enumerate(outputs):
        found[:, positions(plan, rank, "cuda")] = out

    def rms(out):
        return (out.double() - exact).square().mean().sqrt().item()

    assert rms(found) <= 1.1 * rms(single)


def test_a_span_that_is_there_goes_beside_one_that_is_awaited():
    """A later chunk of a prompt has such spans: own keys of earlier chunks, and another rank's."""
    case = Case(512, 3 * 512, False, BF16, 1, 8, 4, 128)
    kernel = kernel_or_skip("hopper", case)
    q, k, v = inputs(case, "cuda")
    own, earlier, other = zip(k.split(512, dim=2), v.split(512, dim=2), strict=True)
    words = torch.ones(2, 4, dtype=torch.int32, device="cuda")[:, 0]
    taken = torch.zeros(1, dtype=torch.int32, device="cuda")
    arriving = ArrivalFlags(words, torch.full((1,), -1, dtype=torch.int32, device="cuda"), taken.data_ptr())
    spans = [KeySpan(*own), KeySpan(*earlier), KeySpan(*other, 256, arriving)]
    state = OnlineSoftmax(1, 8, 512, 128, "cuda", blocks=[(0, 512)], dtype=BF16)
    state.attend(kernel, q, spans, BlockShape.CAUSAL, 0.1)
    expected = OnlineSoftmax(1, 8, 512, 128, "cuda")
    expected.merge(*oracle.block(q.float(), *(x.float() for x in own), BlockShape.CAUSAL, 0.1))
    expected.merge(*oracle.block(q.float(), *(x.float() for x in earlier), BlockShape.FULL, 0.1))
    late = slice(256, 512)
    expected.merge(
        *oracle.block(q[:, :, late].float(), *(x.float() for x in other), BlockShape.FULL, 0.1), late
    )
    torch.testing.assert_close(
        state.output(torch.float32), expected.output(torch.float32), rtol=2e-2, atol=2e-3
    )
    assert (arriving.waited.item(), words.tolist(), taken.item()) == (0, [0, 0], 1)


class Sent:
    """A part of k and v [B, Hkv, L, D] that a launch sends to memory of the same GPU, and that memory."""

    def __init__(self, k, v, lengths, pieces):
        batch, heads, _, dim = k.shape
        self.slots = [k.new_empty(2, batch, n, heads, dim) for n in lengths]
        self.words = torch.zeros(len(lengths), pieces, 4, dtype=torch.int32, device="cuda")
        self.free = torch.zeros(len(lengths), dtype=torch.int32, device="cuda")
        destinations = [
            Destination(*(_remote(x) for x in slot), free.data_ptr(), words.data_ptr())
            for slot, free, words in zip(self.slots, self.free, self.words, strict=True)
        ]
        self.counts, self.took = (torch.zeros(n, dtype=torch.int32, device="cuda") for n in (2 + pieces, 1))
        self.sending = Sending(k, v, destinations, pieces, self.counts, self.took)

    def prepare(self):
        for slot in self.slots:
            slot.fill_(float("nan"))
        self.words.zero_()
        self.free.fill_(1)

    def check(self, k, v):
        for slot in self.slots:
            for x, arrived in zip((k, v), slot, strict=True):
                assert torch.equal(arrived, x.transpose(1, 2)[:, : arrived.shape[1]])
        assert self.counts.tolist() == [0] * len(self.counts)
        assert self.free.tolist() == [0] * len(self.free)
        assert self.took.item() > 0


def _remote(x):
    """[B, L, H, D] as the kernel is told of it: [B, H, L, D]."""
    x = x.transpose(1, 2)
    return Remote(x.data_ptr(), tuple(x.shape), x.stride(), x.dtype)


@pytest.mark.parametrize("lengths", [(1024,), (1000, 1), (129, 1024, 640)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("batch", "heads", "head_dim", "pieces"), [(1, 8, 128, 8), (2, 4, 64, 2), (1, 2, 128, 1)]
)
def test_a_launch_sends_keys_and_values(lengths, causal, batch, heads, head_dim, pieces):
    case = Case(1024, 1024, causal, BF16, batch, 8, heads, head_dim)
    kernel = kernel_or_skip("hopper", case)
    q, k, v = inputs(case, "cuda")
    expected = kernel.block(q, k, v, shape_of(causal), 0.1)[0]
    sent = Sent(k, v, lengths, pieces)

    def attend():
        state = OnlineSoftmax(batch, 8, 1024, head_dim, "cuda", blocks=[(0, 1024)], dtype=BF16)
        state.attend(kernel, q, [KeySpan(k, v, sending=sent.sending)], shape_of(causal), 0.1)
        return state.output(BF16).transpose(1, 2)

    for _ in range(3):
        sent.prepare()
        assert torch.equal(attend(), expected)
        sent.check(k, v)
        assert (sent.words[:, :, 0] == 1).all()
    graph, out = captured(attend)
    for _ in range(3):
        sent.prepare()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)
        sent.check(k, v)


@pytest.mark.parametrize(("heads", "head_dim", "pieces"), [(8, 128, 8), (2, 128, 2), (4, 64, 1)])
@pytest.mark.parametrize("from_row", [0, 512])
def test_a_launch_computes_with_what_is_sent_meanwhile(heads, head_dim, pieces, from_row):
    """With its own, which come back to it: no part may be read before it is there."""
    case = Case(1024, 1024, True, BF16, 1, 8, heads, head_dim)
    kernel = kernel_or_skip("hopper", case)
    q, k, v = inputs(case, "cuda")
    sent = Sent(k, v, (768,), pieces)
    taken = torch.zeros(1, dtype=torch.int32, device="cuda")
    waited = torch.full((1,), -1, dtype=torch.int32, device="cuda")
    arriving = ArrivalFlags(sent.words[0, :, 0], waited, taken.data_ptr())
    late = slice(from_row, None)
    expected = OnlineSoftmax(1, 8, 1024, head_dim, "cuda")
    expected.merge(*oracle.block(q.float(), k.float(), v.float(), BlockShape.CAUSAL, 0.1))
    part = (x[:, :, :768].float() for x in (k, v))
    expected.merge(*oracle.block(q[:, :, late].float(), *part, BlockShape.FULL, 0.1), late)
    for _ in range(5):
        sent.prepare()
        taken.zero_()
        state = OnlineSoftmax(1, 8, 1024, head_dim, "cuda", blocks=[(0, 1024)], dtype=BF16)
        come = [x.transpose(1, 2) for x in sent.slots[0]]
        spans = [KeySpan(k, v, sending=sent.sending), KeySpan(*come, from_row, arriving)]
        state.attend(kernel, q, spans, BlockShape.CAUSAL, 0.1)
        out = state.output(torch.float32)
        torch.testing.assert_close(out, expected.output(torch.float32), rtol=2e-2, atol=2e-3)
        sent.check(k, v)
        assert (sent.words[:, :, 0].tolist(), taken.item()) == ([[0] * pieces], 1)


class AtHand(LoopbackTransport):
    """Shards of all ranks, there from the start; if pieces, copied from the host once released."""

    def __init__(self, rank, shards, pieces, held):
        super().__init__(rank, announces=True)
        self._shards, self._pieces = shards, pieces
        self._stream = torch.cuda.Stream()
        self._released = torch.full((1,), int(not held), dtype=torch.int32, device="cuda")
        self.awaited = False
        self._coming = {
            source: (
                shard.cpu().pin_memory(),
                torch.full_like(shard, float("nan")),
                torch.zeros(pieces, 4, dtype=torch.int32, device="cuda")[:, 0],
                torch.zeros(1, dtype=torch.int32, device="cuda"),
            )
            for source, shard in enumerate(shards)
            if pieces
        }

    def circulate(self, k, v, ring_pass):
        for source in self.arrival_order(ring_pass.tokens):
            if source == self.rank:
                yield PendingShard.local(source, k, v)
            elif self._pieces is None or not ring_pass.needed_of(self.rank, source):
                yield PendingShard(source, lambda source=source: self._shards[source])
            else:  # a kernel may wait for it; where none does, a stream
                yield PendingShard(source, partial(self._receive, source), partial(self.send, source))
        torch.cuda.current_stream().wait_stream(self._stream)

    def send(self, source, waited):
        """A shard that copy engines bring, heads after heads, and the words about it."""
        kept, coming, words, taken = self._coming[source]
        rows, heads = kept.flatten(0, 1), kept.shape[3] // self._pieces
        row_bytes = kept[0, 0, 0].nbytes
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            if not self.awaited:
                cuda_driver.flags(self._stream, awaited=[self._released.data_ptr()])
            for piece in range(self._pieces):
                columns, start = slice(piece * heads, (piece + 1) * heads), piece * row_bytes // self._pieces
                cuda_driver.copy_rows(self._stream, coming.data_ptr() + start, row_bytes, rows[:, :, columns])
                cuda_driver.flags(self._stream, raised=[words[piece:].data_ptr()])
        self.awaited = True
        return coming, ArrivalFlags(words, waited, taken.data_ptr())

    def _receive(self, source):
        shard, _ = self.send(source, None)
        torch.cuda.current_stream().wait_stream(self._stream)
        return shard

    def release(self):
        """Let held shards come."""
        cuda_driver.flags(torch.cuda.Stream(), raised=[self._released.data_ptr()])


@pytest.mark.parametrize("consumers", [2, 3])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (191, 500), (193, 129), (1000, 4113)])
def test_any_number_of_consumers_matches_the_oracle(monkeypatch, q_len, kv_len, consumers):
    from ringexp.kernels import hopper_launch

    case = Case(q_len, kv_len, False, BF16, head_dim=64)
    kernel_or_skip("hopper", case)
    monkeypatch.setattr(hopper_launch, "num_consumers", lambda *_: consumers)
    measure("hopper", case, "cuda").check(case, 0.0)


def test_launches_and_graphs_on_several_streams_leave_each_other_alone():
    """Every launch takes tiles by a counter: two that shared one would leave tiles out."""
    case = Case(1000, 1000, False, BF16, num_heads=32, num_kv_heads=32, head_dim=128)
    kernel = kernel_or_skip("hopper", case)
    q, k, v = inputs(case, "cuda")
    expected = kernel.block(q, k, v, BlockShape.FULL, 0.1)[0].clone()

    def several():
        return [kernel.block(q, k, v, BlockShape.FULL, 0.1)[0] for _ in range(3)]

    several()
    graphs = [captured(several) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(20):
        for _, outputs in graphs:
            for out in outputs:
                out.fill_(float("nan"))
        torch.cuda.synchronize()
        for stream, (graph, _) in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        outputs = several()
        torch.cuda.synchronize()
        for out in [*outputs, *graphs[0][1], *graphs[1][1]]:
            assert torch.equal(out, expected)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("long", ["queries", "keys"])
def test_offsets_beyond_32_bits(long, name):
    """Tensors of more than 2^31 elements; the rows compared lie past that mark."""
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs a GPU of 40 GiB")
    case = Case(1, 1, dtype=BF16, batch=1, num_heads=32, num_kv_heads=32, head_dim=128)
    kernel = kernel_or_skip(name, case)
    far = 2**31 // (32 * 128) + 1000
    lengths = (far, 200) if long == "queries" else (200, far)
    q, k, v = (
        torch.randn(1, n, 32, 128, dtype=BF16, device="cuda").transpose(1, 2)
        for n in (lengths[0], lengths[1], lengths[1])
    )
    out, lse = kernel.block(q, k, v, BlockShape.FULL, 0.1)
    rows = slice(-200, None)
    expected = get_kernel("sdpa", "cuda", BF16, 128).block(q[:, :, rows], k, v, BlockShape.FULL, 0.1)
    torch.testing.assert_close(out[:, :, rows], expected[0], rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(lse[:, :, rows], expected[1], rtol=1e-5, atol=1e-5)


def test_triton_compiles_once_for_all_odd_lengths():
    case = Case(1, 1, dtype=BF16, batch=1)
    kernel = kernel_or_skip("triton", case)
    from ringexp.kernels.triton_kernel import attention_block

    def compiled():
        return sum(len(cache[0]) for cache in attention_block.device_caches.values())

    kernel.block(*inputs(Case(129, 129, dtype=BF16, batch=1), "cuda"), BlockShape.CAUSAL, 0.125)
    before = compiled()
    assert before
    for length in (131, 160, 1, 977):
        kernel.block(*inputs(Case(length, length, dtype=BF16, batch=1), "cuda"), BlockShape.CAUSAL, 0.125)
    assert compiled() == before
