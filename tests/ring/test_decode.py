"""One token over a cache that is spread over ranks, against the float64 oracle; and how results go round."""

import pytest
import torch

from ringexp.kernels.oracle import block_fp64
from ringexp.planning import BlockShape
from support.ring_ranks import decode_inputs, decode_one, epochs_over_stand_ins, gather_over_stand_ins


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("held", "starts"), [((9, 4), (0, 0, 0)), ((9, 1, 5), (0, 10, 12)), ((3, 9), (4, 2, 2))]
)
def test_a_token_attends_to_all_that_is_no_padding(pools, held, starts, kv_heads):
    """Sequences that start at slot 10 have nothing but padding on rank 0."""
    before = [sum(held[:rank]) for rank in range(len(held))]
    firsts = [
        [min(max(start - first, 0), count) for start in starts]
        for first, count in zip(before, held, strict=True)
    ]
    q, k, v = (x.double().transpose(1, 2) for x in decode_inputs(sum(held), kv_heads))
    results = pools[len(held)].run(decode_one, list(held), firsts, kv_heads)
    for sequence, start in enumerate(starts):
        one = slice(sequence, sequence + 1)
        exact, _ = block_fp64(q[one], k[one, :, start:], v[one, :, start:], BlockShape.FULL, 16**-0.5)
        for out in results:
            assert (out[one].transpose(1, 2) - exact).abs().max() < 2e-6
    assert all(torch.equal(out, results[0]) for out in results)  # to the bit


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("held", [[3, 1], [5, 2, 9], [5, 0, 9, 1]], ids=str)
@pytest.mark.parametrize("transport", ["gloo", "nccl", "ipc"])
def test_every_member_gets_all_in_rank_order(pools, transport, held, dtype):
    members = [rank for rank, count in enumerate(held) if count]
    results = pools[len(held)].run(gather_over_stand_ins, transport, held, dtype)
    for rank in members:
        for turn, gathered in enumerate(results[rank]):
            numbers = torch.arange(15).view(3, 5).to(getattr(torch, dtype))
            expected = torch.stack([numbers + 100 * member + 1000 * turn for member in members])
            assert torch.equal(gathered, expected)


def test_a_graph_is_told_when_the_memory_it_points_to_moves(pools):
    for first, less, again, more in pools[2].run(epochs_over_stand_ins):
        assert first == less == again != more
