"""The ring for other people's code: real processes over gloo, in whole and in parts of a group."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import ringexp
from ringexp.kernels.oracle import block_fp64
from ringexp.models.fms.strategy import RingAttentionStrategy, RingModel
from ringexp.planning import make_plan
from support.api_ranks import (
    attend_all,
    attend_as_stranger,
    attend_in_groups,
    close_and_go_on,
    measure,
    refused,
)
from support.ring_ranks import Case
from support.shapes import shape_of

CASES = {
    2: [
        Case((5, 40)),
        Case((33, 1), layout="contiguous"),
        Case((9, 22), num_heads=6, num_kv_heads=1, head_dim=48, batch=2),
        Case((9, 22), shard="kv"),
        Case((30, 11), causal=False),
        Case((0, 12)),
        Case((12, 33), dtype="bfloat16"),
    ],
    3: [
        Case((1, 20, 9)),
        Case((17, 3, 8), layout="contiguous", causal=False),
        Case((20, 0, 9), layout="contiguous"),
        Case((20, 9, 0), batch=2),
        Case((7, 6, 1), num_heads=8, num_kv_heads=8),
    ],
    4: [Case((19, 1, 5, 10)), Case((0, 12, 0, 7)), Case((8, 8, 8, 8), layout="contiguous")],
}


def assert_exact(case: Case, out: torch.Tensor) -> None:
    q, k, v = (x.double().transpose(1, 2) for x in case.qkv())
    exact = block_fp64(q, k, v, shape_of(case.causal), case.head_dim**-0.5)[0].transpose(1, 2)
    assert (out.double() - exact).abs().max() < (2e-6 if out.dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("world_size", CASES)
def test_the_whole_output_is_exact_on_every_rank(pools, world_size):
    for outputs in pools[world_size].run(attend_all, CASES[world_size]):
        for case, out in zip(CASES[world_size], outputs, strict=True):
            assert_exact(case, out)


def test_a_part_of_the_ranks_is_a_ring_of_its_own(pools):
    case = Case((13, 30))
    results = pools[4].run(attend_in_groups, {(1, 3): case}, 2)
    assert [len(outputs) for outputs in results] == [0, 1, 0, 1]
    for (out,) in (results[1], results[3]):
        assert_exact(case, out)


def test_rings_run_side_by_side_and_ranks_may_be_in_several(pools):
    cases = {
        (0, 2): Case((5, 40)),
        (1, 3): Case((21, 8), layout="contiguous", num_kv_heads=4),
        (0, 1, 2, 3): Case((9, 1, 0, 20)),
        (1, 2, 3): Case((4, 4, 11), causal=False),
    }
    for rank, outputs in enumerate(pools[4].run(attend_in_groups, cases, 3)):
        mine = [case for ranks, case in cases.items() if rank in ranks]
        for case, out in zip(mine, outputs, strict=True):
            assert_exact(case, out)


def test_a_process_outside_the_group_is_told_so(pools):
    told = pools[3].run(attend_as_stranger, (0, 2), Case((5, 9)))
    assert told[0] == told[2] == "no error"
    assert told[1] == "this process is not in the group; only the group's own ranks may call"


REFUSED = {
    "length": "q [1, {over}, 4, 16]",
    "keys": "cut tensors with ringexp.shard",
    "heads": "H a multiple of Hkv",
    "head_dim": "need one B and D",
    "batch": "need one B and D",
    "dimensions": "q must be [B, Lq, H, D]",
    "dtype": "need one dtype and one device, got torch.float32 on cpu, torch.bfloat16 on cpu",
    "world": "the plan is for 3 ranks, but the group has 2",
    "chunks": "the plan is in chunks; call with each of plan.chunks",
    "scale": "softmax_scale=0.0 must be above 0",
    "kernel": "kernel=fastest is unknown",
    "transport": "transport=mpi is unknown",
    "device": "transport=nccl needs CUDA, but the tensors are on cpu",
    "gradient": "no backward",
    "no gradient": "no error",
    "shard": "the plan has 30 tokens, but the tensor [1, 31]",
    "unshard": "but the tensor [1, {over}] does not have that many in dim=1",
    "unshard_dim": "does not have that many in dim=1",
}


def test_what_does_not_fit_is_refused_in_one_line(pools):
    for tokens, found in zip(ringexp.plan([2, 1], 30).tokens, pools[2].run(refused), strict=True):
        assert set(found) == set(REFUSED)
        for name, message in REFUSED.items():
            assert message.format(over=tokens + 1) in found[name], name
            assert "\n" not in found[name]


@pytest.mark.parametrize("rank", [-1, 2, 10**30, True, 1.0, None, "0", torch.tensor([0, 1])], ids=str)
def test_a_rank_that_the_plan_lacks_is_refused(rank):
    made = ringexp.plan([2, 1], 30)
    x = torch.zeros(1, 30)
    calls = [
        lambda: ringexp.shard(x, made, rank),
        lambda: ringexp.positions(made, rank),
        lambda: made.blocks(rank, 0),
        lambda: made.blocks(0, rank),
        lambda: made.needed(rank, 0),
        lambda: made.pairs(rank),
        lambda: made.causal_pairs(rank),
        lambda: made.real_tokens(rank),
    ]
    for call in calls:
        with pytest.raises(ringexp.UserError, match=r"^rank=.* must be a whole number from 0 to 1; .*$"):
            call()


def test_ranks_of_numpy_and_torch_are_ranks():
    made = ringexp.plan([2, 1], 30)
    for rank in (np.int64(1), torch.tensor(1)):
        assert torch.equal(ringexp.positions(made, rank), ringexp.positions(made, 1))


@pytest.mark.parametrize("dim", [2, -3, True, 1.0, None])
def test_a_dimension_that_the_tensor_lacks_is_refused(dim):
    made = ringexp.plan([1], 30)
    for call in (
        lambda: ringexp.shard(torch.zeros(1, 30), made, 0, dim),
        lambda: ringexp.unshard(torch.zeros(1, 30), made, dim=dim),
    ):
        with pytest.raises(ringexp.UserError, match=r"dim="):
            call()


def test_defaults_are_the_same_everywhere():
    """In every public function, in what `get_model` makes, and on the command line."""
    public = [getattr(ringexp, name) for name in ringexp.__all__]
    callables = [RingAttentionStrategy, RingModel, make_plan]
    callables += [each for each in public if not (inspect.isclass(each) and issubclass(each, Exception))]
    found: dict[str, set[object]] = {"layout": {conf("layout")}, "causal": {True}}
    found |= {"kernel": {conf("kernel")}, "transport": {conf("transport")}, "group": {None}, "dim": {1}}
    for call in callables:
        for name, parameter in inspect.signature(call).parameters.items():
            if name in found and parameter.default is not inspect.Parameter.empty:
                found[name].add(parameter.default)
    assert {name: len(defaults) for name, defaults in found.items()} == dict.fromkeys(found, 1), found


def conf(group: str) -> str:
    """Return the command line's default choice in a group."""
    text = (Path(__file__).parents[1] / "conf" / "config.yaml").read_text()
    choice = re.search(rf"^  - {group}: (\S+)$", text, re.MULTILINE)
    assert choice is not None
    return choice[1]


def test_a_closed_ring_keeps_no_thread_and_starts_anew(pools):
    case = Case((13, 30))
    for (before, *threads), outputs in pools[2].run(close_and_go_on, case):
        assert threads == [before + 1, before, before + 1, before]
        for out in outputs:
            assert_exact(case, out)


def test_measured_speeds_are_the_ranks_own_and_known_to_all(pools):
    results = pools[3].run(measure, [100, 20, 100])
    assert results[0] == results[1] == results[2]
    fast, slow, other = results[0]
    assert 0 < slow < 0.6 * min(fast, other)
    tokens = ringexp.plan(results[0], 3000).tokens
    assert tokens[1] == min(tokens)


def test_one_process_needs_no_group():
    case = Case((37,), num_kv_heads=1)
    plan = ringexp.plan([3.0], 37)
    q, k, v = (x.mT.contiguous().mT for x in case.qkv())  # head_dim need not be contiguous
    out = ringexp.ring_attention(q, k, v, plan)
    assert_exact(case, ringexp.unshard(out, plan))
    ringexp.close()
    (speed,) = ringexp.measure_speeds(64, num_heads=2, head_dim=16, dtype=torch.float32, max_seconds=0.05)
    assert speed > 0
