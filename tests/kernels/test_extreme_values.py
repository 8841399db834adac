"""Keys and values that are infinite, NaN or very large: a ring gives what one process does.

The reference is PyTorch's own math attention in float64 over the whole prompt: a row whose scores are all
-inf is 0. No row may be a finite wrong number, however the prompt is split.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels.cases import FLOAT32_EPS
from ringexp.choices import LAYOUTS
from ringexp.kernels import OnlineSoftmax, get_kernel, oracle, sdpa
from ringexp.kernels.contract import LOWEST_LSE
from ringexp.kernels.decode import Slots, by_blocks, merge
from ringexp.planning import BlockShape, Mask, make_plan
from ringexp.ring.route import Route
from support.shapes import shape_of

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
SCALE = HEAD_DIM**-0.5
NEGATIVE_KEY = {torch.float32: -3e38, torch.bfloat16: -3e38, torch.float16: -65504.0}
"""Products of such keys overflow in float32; float16's do not."""


def whole(q, k, v, causal):
    """Return the out [B, H, L, D] of one process, in float64. k and v must have no NaN."""
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1).double() for x in (k, v))
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q.double(), k, v, is_causal=causal, scale=SCALE)


def in_a_ring(q, k, v, plan, kernel):
    """Return out [B, H, L, D]. Each rank of the plan merges it block by block, in the ring's order."""
    out = torch.full_like(q, math.nan)
    for rank in plan.members:
        mine = plan.q_shards[rank].positions()
        state = OnlineSoftmax(q.shape[0], HEADS, len(mine), HEAD_DIM, "cpu")
        for source in Route.of(plan.kv_tokens, rank).sources:
            theirs = plan.kv_shards[source].positions()
            for block in plan.blocks(rank, source):
                rows, keys = slice(block.q_start, block.q_stop), slice(block.kv_start, block.kv_stop)
                queries, found = q[:, :, mine][:, :, rows], (x[:, :, theirs][:, :, keys] for x in (k, v))
                state.merge(*kernel.block(queries, *found, block.shape, SCALE), rows)
        out[:, :, mine] = state.output(q.dtype).transpose(1, 2)
    return out


def sees(bad, length, causal):
    """Which rows [B, H, L] see a key or a value that is `bad` [B, Hkv, L]."""
    seen = torch.ones(length, length).tril() if causal else torch.ones(length, length)
    count = torch.einsum("qk,bhk->bhq", seen, bad.float())
    return (count > 0).repeat_interleave(HEADS // KV_HEADS, dim=1)


def check_a_ring(tokens, layout, causal, dtype, kernel, spoil):
    """Spoil random tensors, and compare a ring that splits them so with one process."""
    length = sum(tokens)
    generator = torch.Generator().manual_seed(length)
    q = torch.rand(2, HEADS, length, HEAD_DIM, generator=generator) + 0.1
    k, v = (torch.randn(2, KV_HEADS, length, HEAD_DIM, generator=generator) for _ in range(2))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    spoil(q, k, v)
    nan = k.isnan().any(3) | v.isnan().any(3)
    expected = whole(q, *(x.masked_fill(x.isnan(), 0.0) for x in (k, v)), causal)
    plan = make_plan(length, tokens, layout, mask=Mask.of(causal))
    out = in_a_ring(q, k, v, plan, get_kernel(kernel, "cpu", dtype, HEAD_DIM))
    sees_nan = sees(nan, length, causal)
    assert out.isnan().all(3)[sees_nan].all()
    # A row that shares a block with a NaN it does not see may be NaN too, as in one process: 0 x NaN is NaN.
    right = ~sees_nan & ~out.isnan().any(3)
    assert right.any() or nan.any()
    assert nan.any() or right.all()
    scores = (q.double() @ k.nan_to_num(0, 0, 0).double().repeat_interleave(2, 1).mT * SCALE).abs().max()
    slack = 8 * torch.finfo(dtype).eps + 8 * FLOAT32_EPS * min(scores.item(), 1e4)
    torch.testing.assert_close(out.double()[right], expected[right], rtol=slack, atol=4 * slack)


@st.composite
def rings(draw):
    ranks = draw(st.sampled_from([1, 2, 3, 5]))
    return draw(st.lists(st.integers(1, 12), min_size=ranks, max_size=ranks))


@st.composite
def stretches(draw):
    """Some keys, often the first ones or all of them, of some KV heads: slices of a prompt, as fractions."""
    start = draw(st.sampled_from([0.0, 0.0, 0.25, 0.5]))
    return start, draw(st.sampled_from([0.1, 0.5, 0.9, 1.0])), draw(st.integers(0, KV_HEADS - 1))


def keys_of(stretch, length):
    start, stop, head = stretch
    return slice(None), slice(head, None), slice(int(start * length), math.ceil(stop * length))


@settings(deadline=None, max_examples=60)
@given(
    tokens=rings(),
    layout=st.sampled_from(sorted(LAYOUTS.names)),
    causal=st.booleans(),
    dtype=st.sampled_from(sorted(NEGATIVE_KEY, key=str)),
    kernel=st.sampled_from(["sdpa", "reference"]),
    minus_infinity=stretches(),
    huge=st.none() | stretches(),
    nan=st.none() | stretches(),
    nan_keys=st.booleans(),
)
def test_a_ring_of_extreme_values_is_what_one_process_gives(
    tokens, layout, causal, dtype, kernel, minus_infinity, huge, nan, nan_keys
):
    def spoil(q, k, v):
        if huge and dtype == torch.float16:
            k[keys_of(huge, k.shape[2])] = NEGATIVE_KEY[dtype]
        k[keys_of(minus_infinity, k.shape[2])] = -math.inf
        if nan:
            (k if nan_keys else v)[keys_of(nan, v.shape[2])] = math.nan

    check_a_ring(tokens, layout, causal, dtype, kernel, spoil)


@pytest.mark.parametrize("layout", sorted(LAYOUTS.names))
@pytest.mark.parametrize("kernel", ["sdpa", "reference"])
@pytest.mark.parametrize("tokens", [[700], [700, 700], [300, 900, 200]])
def test_more_keys_than_a_tile_of_the_kernel_holds(tokens, kernel, layout):
    def spoil(q, k, v):
        k[:, :, :650] = -math.inf
        k[0, 0, 1000:1010] = -math.inf

    check_a_ring(tokens, layout, True, torch.float32, kernel, spoil)


@pytest.mark.parametrize("kernel", ["sdpa", "reference"])
@pytest.mark.parametrize("causal", [True, False])
def test_products_that_overflow_weigh_nothing(kernel, causal):
    """A query of 1 and keys of -3e38 have 16 products that add up to -inf in float32."""
    q, k, v = (torch.ones(1, heads, 8, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
    k[:, :, :4], v[:, :, :4] = -3e38, 5.0
    plan = make_plan(8, [4, 4], "contiguous", mask=Mask.of(causal))
    out = in_a_ring(q, k, v, plan, get_kernel(kernel, "cpu", torch.float32, HEAD_DIM))
    assert out[:, :, 4:].eq(1.0).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["sdpa", "reference"])
@pytest.mark.parametrize("dtype", NEGATIVE_KEY)
def test_a_row_without_scores_is_zero_with_a_sum_of_nothing(dtype, kernel, causal):
    q, k, v = (torch.rand(2, heads, 9, HEAD_DIM).to(dtype) + 0.1 for heads in (HEADS, KV_HEADS, KV_HEADS))
    k[1, :, :5] = -math.inf
    k[0, 1] = -math.inf
    out, lse = get_kernel(kernel, "cpu", dtype, HEAD_DIM).block(q, k, v, shape_of(causal), SCALE)
    empty = torch.zeros(2, HEADS, 9, dtype=torch.bool)
    empty[0, 2:] = True
    empty[1, :, :5] = causal
    assert torch.equal(lse.isneginf(), empty)
    assert lse[~empty].isfinite().all()
    assert torch.equal(out.eq(0).all(3), empty)


@pytest.mark.parametrize("length", [1, 2, 5, 17, 40])
@pytest.mark.parametrize("dtype", NEGATIVE_KEY)
def test_keys_that_are_all_nan_are_no_zeros(dtype, length):
    """PyTorch's CPU flash attention answers 0 for up to a vector of such keys."""
    q, k, v = (torch.ones(1, heads, length, HEAD_DIM).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    k[:, 1] = math.nan
    for causal in (False, True):
        out, lse = get_kernel("sdpa", "cpu", dtype, HEAD_DIM).block(q, k, v, shape_of(causal), SCALE)
        assert out[:, 2:].isnan().all()
        assert lse[:, 2:].isnan().all()
        assert out[:, :2].isfinite().all()


@pytest.mark.parametrize("kernel", ["sdpa", "reference"])
def test_zeros_are_no_rows_without_scores(kernel):
    """One key of zeros, whose value is zeros: out 0 and lse 0, and its weight counts."""
    q, k, v = (torch.zeros(1, heads, 1, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
    block = get_kernel(kernel, "cpu", torch.float32, HEAD_DIM).block
    assert block(q, k, v, BlockShape.CAUSAL, SCALE)[1].eq(0).all()
    state = OnlineSoftmax(1, HEADS, 1, HEAD_DIM, "cpu")
    state.merge(*block(q, k, v, BlockShape.CAUSAL, SCALE))
    state.merge(*block(q, k, v + 1, BlockShape.FULL, SCALE))
    assert state.output(torch.float32).eq(0.5).all()


def test_flash_on_cuda_gives_rows_without_scores_the_lowest_sum(monkeypatch):
    """FlashAttention-2 answers +inf, which would merge as weight 1."""
    lse = torch.tensor([[[0.5, math.inf, math.nan, -2.0]]])
    answer = torch.ones(1, 1, 4, HEAD_DIM), lse
    monkeypatch.setattr(
        sdpa, "_aten", type("", (), {"_scaled_dot_product_flash_attention": lambda *a, **k: answer})
    )
    q = torch.ones(1, 1, 4, HEAD_DIM)
    _, found = sdpa.flash_cuda(q, q, q, True, SCALE)
    assert found[0, 0, [0, 1, 3]].tolist() == [0.5, LOWEST_LSE, -2.0]
    assert found[0, 0, 2].isnan()


@pytest.mark.parametrize("nothing", [-math.inf, LOWEST_LSE])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
def test_a_sum_of_nothing_weighs_nothing_in_any_order(nothing, order):
    blocks = [(torch.full((1, 1, 3, 2), 7.0), torch.full((1, 1, 3), -1.5))]
    blocks += [(torch.zeros(1, 1, 3, 2), torch.full((1, 1, 3), nothing))] * 2
    state = OnlineSoftmax(1, 1, 3, 2, "cpu")
    for index in order:
        state.merge(*blocks[index])
    assert state.output(torch.float32).eq(7.0).all()
    assert state.lse.eq(-1.5).all()


@pytest.mark.parametrize("lse", [math.inf, math.nan])
@pytest.mark.parametrize("first", [True, False])
def test_what_is_not_a_number_stays_so_when_merged(lse, first):
    blocks = [(torch.full((1, 1, 3, 2), math.nan), torch.full((1, 1, 3), lse))]
    blocks.insert(0 if not first else 1, (torch.ones(1, 1, 3, 2), torch.zeros(1, 1, 3)))
    state = OnlineSoftmax(1, 1, 3, 2, "cpu")
    for block in (*blocks, (torch.ones(1, 1, 3, 2), torch.zeros(1, 1, 3))):
        state.merge(*block)
    assert state.output(torch.float32).isnan().all()


def test_parts_of_decoding_without_scores_weigh_nothing():
    q, k, v = (torch.rand(1, length, KV_HEADS, HEAD_DIM) + 0.1 for length in (2, 6, 6))
    q = q.transpose(1, 2)
    k[:, :4] = -math.inf
    kernel = by_blocks(get_kernel("sdpa", "cpu", torch.float32, HEAD_DIM).block)
    parts = []
    for keys in (slice(0, 2), slice(2, 4), slice(4, 6)):
        slots = Slots([0], 2, torch.device("cpu"))
        parts.append(kernel.merge(kernel.attend(q, k[:, keys], v[:, keys], slots, SCALE)))
    exact = oracle.block(q, k[:, 4:].transpose(1, 2), v[:, 4:].transpose(1, 2), BlockShape.FULL, SCALE)[0]
    torch.testing.assert_close(merge(torch.stack(parts), torch.float32), exact)
    nothing = merge(torch.stack(parts[:2]))
    assert nothing[..., :-1].eq(0).all()
    assert nothing[..., -1].isneginf().all()
