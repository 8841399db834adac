"""FMS models through the ring equal the same weights on one process."""

import math

import pytest
import torch

from ringexp.config import FmsModelConfig
from ringexp.models.fms.workload import FmsWorkload
from ringexp.worker.accuracy import accuracy_of
from support.model_ranks import LLAMA, TINY, ask_for_model, chunked_logits, fms_logits


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
@pytest.mark.parametrize("block_lens", [[40, 23], [9, 30, 12], [1, 33, 8, 17]], ids=str)
@pytest.mark.parametrize("architecture", TINY)
def test_ring_logits_equal_single_process_logits(pools, architecture, block_lens, layout):
    arguments = (architecture, TINY[architecture], block_lens, layout, 0)
    results = pools[len(block_lens)].run(fms_logits, *arguments)
    for ring, alone, _ in results:
        spread = (alone.max() - alone.min()).item()
        assert (ring - alone).abs().max().item() <= 1e-5 * spread


@pytest.mark.parametrize("architecture", TINY)
def test_bfloat16_is_no_further_from_float32_than_one_process(pools, architecture):
    arguments = (architecture, TINY[architecture], [70, 41], "zigzag", 0, "bfloat16")
    for ring, alone, exact in pools[2].run(fms_logits, *arguments):
        assert accuracy_of([(ring, exact)], alone, exact).exact


def test_every_rank_gets_the_last_tokens_logits(pools):
    results = pools[2].run(fms_logits, "llama", TINY["llama"], [40, 23], "zigzag", 1)
    for ring, alone, _ in results:
        assert ring.shape == (2, 1, 64)
        assert (ring - alone).abs().max().item() <= 1e-5 * (alone.max() - alone.min()).item()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distributed_strategy": "rings"}, "distributed_strategy=rings is unknown"),
        ({"distributed_strategy": "ring"}, "needs block_lens"),
        ({"block_lens": [3, 4]}, "block_lens goes with"),
        ({"distributed_strategy": "ring", "block_lens": [3, 4, 5]}, "one length for each of 2 ranks"),
        ({"distributed_strategy": "ring", "block_lens": [900, 900]}, "max_expected_seq_len=1024"),
    ],
)
def test_requests_that_cannot_work_are_refused(pools, arguments, message):
    for text in pools[2].run(ask_for_model, arguments):
        assert message in text


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
@pytest.mark.parametrize(("tokens", "chunks"), [([40, 23], 4), ([9, 30, 12], 9)], ids=str)
def test_prefill_in_chunks_equals_one_process(pools, architecture, tokens, chunks):
    results = pools[len(tokens)].run(chunked_logits, architecture, tokens, chunks)
    owner = max(range(len(tokens)), key=lambda rank: results[rank][2])
    ring, alone, _ = results[owner]
    assert (ring - alone).abs().max().item() <= 1e-5 * (alone.max() - alone.min()).item()


@torch.inference_mode()
def test_tokens_of_logits_that_are_nan_never_agree():
    config = FmsModelConfig(name="llama_tiny", dtype="float32", overrides=LLAMA)
    workload = FmsWorkload(config, 16, torch.device("cpu"), 0)
    prompt = workload.inputs(8, 0)[:1]
    token = workload.reference(prompt, torch.float32).argmax(-1).view(1, 1)
    assert workload.text_model.agreeing(prompt, token) == 1
    workload._model.get_parameter("head.weight")[5] = math.nan
    assert workload.reference(prompt, torch.float32).argmax(-1).item() == 5  # what argmax takes NaN for
    assert workload.text_model.agreeing(prompt, torch.tensor([[5]])) == 0
