"""The ring against the float64 oracle, in real processes over gloo."""

from pathlib import Path

import pytest
import torch

from ringexp.choices import TRANSPORTS
from ringexp.kernels.oracle import block_fp64
from ringexp.planning import make_plan
from support.ring_ranks import (
    Case,
    attend,
    attend_in_chunks_over_stand_ins,
    attend_over_stand_ins,
    attend_with_transport_of,
    fail_at_the_first_block,
    sent_over_stand_ins,
)
from support.shapes import shape_of

ON_GPUS = [spec.name for spec in TRANSPORTS if "cpu" not in spec.devices]
TOKENS = {
    1: [(37,)],
    2: [(16, 16), (5, 40), (1, 30), (33, 1)],
    3: [(12, 12, 12), (1, 20, 9), (17, 3, 8)],
    4: [(8, 8, 8, 8), (19, 1, 5, 10), (1, 1, 1, 1)],
}
CASES = [
    Case(tokens, layout, shard, causal)
    for counts in TOKENS.values()
    for tokens in counts
    for layout in ("zigzag", "contiguous")
    for shard in ("tokens", "kv")
    for causal in (True, False)
]
SHAPES = [
    Case((20, 0, 9)),
    Case((0, 12, 0, 7), layout="contiguous"),
    Case((0, 12), causal=False),
    Case((9, 22), num_heads=6, num_kv_heads=1, head_dim=48),
    Case((9, 22, 3), num_heads=8, num_kv_heads=8, batch=2),
    Case((7, 1, 30), batch=2, shard="kv"),
    Case((11, 6, 2, 14), prefetch_hops=1),
    Case((11, 6, 2, 14), prefetch_hops=2, layout="contiguous"),
    Case((11, 6, 2, 14), kernel="reference"),
]


def name(case: Case) -> str:
    parts = ["/".join(map(str, case.tokens)), case.layout, case.shard, "causal" if case.causal else "full"]
    parts += [f"h{case.num_heads}kv{case.num_kv_heads}b{case.batch}", case.kernel, f"p{case.prefetch_hops}"]
    return "-".join(parts)


def oracle(case: Case) -> torch.Tensor:
    q, k, v = (x.double().transpose(1, 2) for x in case.qkv())
    return block_fp64(q, k, v, shape_of(case.causal), case.head_dim**-0.5)[0].transpose(1, 2)


def assembled(case: Case, outputs: list[torch.Tensor]) -> torch.Tensor:
    whole = torch.full((case.batch, sum(case.tokens), case.num_heads, case.head_dim), float("nan"))
    for shard, out in zip(case.plan().q_shards, outputs, strict=True):
        whole[:, shard.positions()] = out.float()
    return whole


@pytest.mark.parametrize("case", CASES + SHAPES, ids=name)
def test_ring_equals_the_oracle(pools, case):
    results = pools[len(case.tokens)].run(attend, case)
    error = (assembled(case, [out for out, _, _ in results]) - oracle(case)).abs().max()
    assert error < 2e-6


@pytest.mark.parametrize("case", [Case((5, 12, 9)), Case((7, 30), shard="kv")], ids=name)
def test_the_transport_of_the_how_to_works(pools, case):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-transport.md"
    code = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    outputs = pools[len(case.tokens)].run(attend_with_transport_of, code, case)
    assert (assembled(case, outputs) - oracle(case)).abs().max() < 2e-6


def test_output_is_contiguous_and_every_hop_is_timed(pools):
    for out, hops, transfers in pools[3].run(attend, Case((5, 6, 7))):
        assert out.is_contiguous()
        assert (hops, transfers) == (3, 2)


def test_an_exception_in_mid_ring_leaves_no_thread_waiting(pools):
    """It would keep the process from ending."""
    told = pools[3].run(fail_at_the_first_block, Case((8, 8, 8), prefetch_hops=1))
    assert told == ["no such block"] * 3


def test_bfloat16_error_does_not_grow_with_ranks(pools):
    """Each block's output is rounded once to bfloat16 before the merge; more blocks average, never add up."""
    errors = []
    for tokens in ((128,), (64, 64), (32, 32, 32, 32)):
        case = Case(tokens, dtype="bfloat16", head_dim=64)
        outputs = [out for out, _, _ in pools[len(tokens)].run(attend, case)]
        errors.append((assembled(case, outputs) - oracle(case)).square().mean().sqrt().item())
    assert max(errors[1:]) <= 1.5 * errors[0]


@pytest.mark.parametrize("prefetch_hops", [None, 1, 2])
@pytest.mark.parametrize("shard", ["tokens", "kv"])
@pytest.mark.parametrize("tokens", [(5, 40), (17, 3, 8), (19, 1, 5, 10)], ids=str)
@pytest.mark.parametrize("transport", ON_GPUS)
def test_cuda_transports_hand_on_the_right_shards(pools, transport, tokens, shard, prefetch_hops):
    """After a shorter prompt and twice in a row: IPC outboxes grow, and are filled anew in time."""
    case = Case(tokens, shard=shard, prefetch_hops=prefetch_hops)
    cases = [Case(tuple(reversed(tokens)), num_kv_heads=1), case, case]
    results = pools[len(tokens)].run(attend_over_stand_ins, transport, cases)
    assert (assembled(case, [out for out, _ in results]) - oracle(case)).abs().max() < 2e-6
    assert [transfers for _, transfers in results] == [len(tokens) - 1] * len(tokens)


@pytest.mark.parametrize("transport", ON_GPUS)
def test_cuda_transports_pass_over_ranks_that_hold_nothing(pools, transport):
    cases = [Case((4, 5, 6, 7)), Case((19, 0, 5, 10)), Case((0, 30, 4, 0)), Case((9, 1, 2, 3))]
    for count in range(1, len(cases) + 1):
        case = cases[count - 1]
        results = pools[4].run(attend_over_stand_ins, transport, cases[:count])
        assert (assembled(case, [out for out, _ in results]) - oracle(case)).abs().max() < 2e-6
        members = case.plan().members
        assert [transfers for _, transfers in results] == [
            len(members) - 1 if rank in members else 0 for rank in range(4)
        ]


@pytest.mark.parametrize("prefetch_hops", [None, 1])
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
@pytest.mark.parametrize("tokens", [(8, 40), (16, 8, 24), (16, 24, 8, 40), (8, 5, 8, 16)], ids=str)
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_shards_come_over_ipc_however_ranks_share_gpus(pools, devices, tokens, layout, prefetch_hops):
    """Out of outboxes on one GPU, by copies beside them on two, and as kernels await them on four."""
    case = Case(tokens, layout, prefetch_hops=prefetch_hops, kernel="joining")
    cases = [Case(tuple(reversed(tokens)), num_kv_heads=1), case, case]
    results = pools[len(tokens)].run(attend_over_stand_ins, "ipc", cases, devices)
    assert (assembled(case, [out for out, _ in results]) - oracle(case)).abs().max() < 2e-6
    assert [transfers for _, transfers in results] == [len(tokens) - 1] * len(tokens)


@pytest.mark.parametrize(
    ("kernel", "tokens", "nvlink", "carries"),
    [
        ("sdpa", (8, 5, 12), True, False),
        ("joining", (8, 16, 24), True, True),
        ("joining", (8, 16, 24), False, False),
    ],
)
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_over_ipc_goes_only_what_is_computed_with(pools, layout, kernel, tokens, nvlink, carries):
    """Copied; or by the kernel where that joins all shards and stores to other GPUs are fast."""
    case = Case(tokens, layout, kernel=kernel)
    plan, token_bytes = case.plan(), 2 * case.num_kv_heads * case.head_dim * 4
    needed = [
        sum(len(plan.needed(rank, source)) for rank in range(3) if rank != source) for source in range(3)
    ]
    sent = [token_bytes * count for count in needed]
    assert pools[3].run(sent_over_stand_ins, case, nvlink) == [
        (0, count) if carries else (count, 0) for count in sent
    ]
    assert sum(needed) < 2 * sum(case.tokens)


def test_gpus_of_two_kinds_agree_on_how_shards_are_sent(pools):
    """One has a kernel that awaits shards heads after heads, the others have not."""
    case = Case((16, 24, 8, 40), kernel="joining on rank 0")
    results = pools[4].run(attend_over_stand_ins, "ipc", [case, case], 4, 2)
    assert (assembled(case, [out for out, _ in results]) - oracle(case)).abs().max() < 2e-6


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_a_launch_takes_shards_on_their_way_beside_own_keys_of_earlier_chunks(pools, layout):
    case = Case((32, 32), layout, kernel="joining")
    plan = make_plan(64, case.tokens, layout, tile=4, chunks=2)
    found = pools[2].run(attend_in_chunks_over_stand_ins, case, 2)
    expected = oracle(case)
    for rank, out in enumerate(found):
        positions = [p for chunk in plan.chunks for p in chunk.q_shards[rank].positions()]
        assert (out - expected[:, positions]).abs().max() < 2e-6
