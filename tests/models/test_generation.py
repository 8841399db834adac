"""Generation over a cache that is spread over ranks gives the tokens and logits of one process."""

import pytest
import torch

from support.model_ranks import TINY, caches, generated, refused, until_eos

NEW_TOKENS = 7


def check(results: list[dict[str, torch.Tensor]]) -> None:
    for result in results:
        alone = result["logits_alone"]
        error = (result["logits"] - alone).abs().max().item()
        assert error <= 1e-5 * (alone.max() - alone.min()).item()
        assert torch.equal(result["ours"], result["alone"])
        assert torch.equal(result["fms"], result["alone"])
        assert not torch.isnan(alone).any()


@pytest.mark.parametrize("block_lens", [[40, 23], [9, 30, 12]], ids=str)
@pytest.mark.parametrize("architecture", TINY)
def test_every_family_decodes_as_one_process(pools, architecture, block_lens):
    prompts = [sum(block_lens)] * 2
    arguments = (architecture, TINY[architecture], block_lens, "zigzag", prompts, NEW_TOKENS)
    check(pools[len(block_lens)].run(generated, *arguments))


@pytest.mark.parametrize("block_lens", [[40, 23], [1, 1, 30], [33, 8, 1, 9]], ids=str)
def test_a_contiguous_layout_decodes_as_one_process(pools, block_lens):
    arguments = ("llama", TINY["llama"], block_lens, "contiguous", [sum(block_lens)], NEW_TOKENS)
    check(pools[len(block_lens)].run(generated, *arguments))


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
@pytest.mark.parametrize(
    "lengths", [[63, 20], [5, 63, 63, 41], [1, 63]], ids=lambda lengths: "-".join(map(str, lengths))
)
def test_batches_of_unequal_prompts_are_padded_on_the_left(pools, lengths, layout):
    """With [1, 63] some ranks have nothing of a sequence but padding."""
    arguments = ("llama", TINY["llama"], [40, 23], layout, lengths, NEW_TOKENS)
    check(pools[2].run(generated, *arguments))


@pytest.mark.parametrize("architecture", ["granite", "mixtral"])
def test_padding_in_other_families(pools, architecture):
    arguments = (architecture, TINY[architecture], [9, 30, 12], "zigzag", [51, 17, 50], NEW_TOKENS)
    check(pools[3].run(generated, *arguments))


@pytest.mark.parametrize("reserved", [0, 12])
def test_new_tokens_go_to_the_rank_with_the_most_free_capacity(pools, reserved):
    """Shares of 3:1, so 3 of 4 tokens to rank 0; without a reservation caches grow."""
    results = pools[2].run(caches, [30, 10], 12, reserved)
    assert [held for held, _, _ in results] == [[39, 13]] * 2
    for filled, (_, slots, num_bytes) in zip((39, 13), results, strict=True):
        assert slots == filled + 1 if reserved else slots > filled + 1  # one more, for what others keep
        assert num_bytes == 2 * slots * 192 * 4  # keys and values, float32, nothing else kept alive


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gaps", "position_ids must count from 0"),
        ("mask alone", "a padded batch needs position_ids"),
        ("too long", "seq_len=65 is beyond the model's max_expected_seq_len=64"),
    ],
)
def test_what_cannot_be_decoded_is_refused(pools, case, message):
    for text in pools[2].run(refused, case):
        assert message in text


def test_generation_ends_when_all_sequences_have(pools):
    for tokens, shorter in pools[2].run(until_eos):
        assert shorter.shape[1] == 63 + 3
        assert torch.equal(shorter, tokens[:, :66])
