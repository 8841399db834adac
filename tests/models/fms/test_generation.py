"""Generation over a cache that is spread over ranks gives the tokens and logits of one process."""

import pytest
import torch

from ringexp import RankCost
from support.checkpoints import CHECKPOINTS, SHAPE, save_checkpoint
from support.generation_ranks import (
    SAMPLED,
    continued,
    misasked,
    misplanned,
    misused,
    of_any_length,
    padded_by_speed,
    sampled,
)
from support.model_ranks import TINY, caches, generated, refused

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


LENGTHS = [40, 23, 31]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a folder, its model, three prompts of unequal lengths, and their unended continuations."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = save_checkpoint(folder, *CHECKPOINTS["llama"])
    random = torch.Generator().manual_seed(2)
    prompts = [torch.randint(1, SHAPE["vocab_size"], (length,), generator=random) for length in LENGTHS]
    return folder, model, prompts, by_hugging_face(model, prompts, pad=1)[:, max(LENGTHS) :].tolist()


@torch.inference_mode()
def by_hugging_face(model, prompts: list[torch.Tensor], pad: int, **how) -> torch.Tensor:
    """Return Hugging Face's own greedy continuation of a batch that is padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.stack([pad_left(prompt, longest, pad) for prompt in prompts])
    mask = torch.stack([pad_left(torch.ones_like(prompt), longest, 0) for prompt in prompts])
    how = {"pad_token_id": pad, "max_new_tokens": 12} | how
    return model.generate(ids, attention_mask=mask, do_sample=False, **how)


def pad_left(x: torch.Tensor, length: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (length - len(x), 0), value=value)


def test_sequences_end_at_different_times_as_in_hugging_face(pools, checkpoint):
    folder, model, prompts, (first, second, third) = checkpoint
    ends = [first[2], second[5], third[8]]
    told = [
        {"max_new_tokens": 12, "eos_token_id": ends, "pad_token_id": 7},
        {"max_new_tokens": 12, "eos_token_id": tuple(ends), "pad_token_id": ends[0]},
        {"max_new_tokens": 12, "eos_token_id": first[2], "pad_token_id": 7},
        {"max_new_tokens": 12, "eos_token_id": torch.tensor(ends)},
    ]
    wanted = [
        by_hugging_face(model, prompts, pad=7, eos_token_id=ends),
        by_hugging_face(model, prompts, pad=ends[0], eos_token_id=ends),
        by_hugging_face(model, prompts, pad=7, eos_token_id=first[2]),
        by_hugging_face(model, prompts, pad=ends[0], eos_token_id=ends, pad_token_id=None),
    ]
    new = wanted[0][:, max(LENGTHS) :].tolist()
    stops = [min(row.index(end) for end in ends if end in row) for row in new]
    assert len(set(stops)) > 1, "this seed ends all sequences at once"
    assert len(new[0]) == max(stops) + 1 < 12
    for results in pools[2].run(continued, str(folder), [25, 15], prompts, told):
        for tokens, expected in zip(results, wanted, strict=True):
            assert torch.equal(tokens, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eos_token_id": "2"}, "eos_token_id=2 must be token ids"),
        ({"eos_token_id": [1, 2.0]}, "eos_token_id=[1, 2.0] must be token ids"),
        ({"eos_token_id": True}, "eos_token_id=True must be token ids"),
        ({"pad_token_id": -1}, "pad_token_id=[-1] must be token ids"),
        ({"pad_token_id": 64}, "pad_token_id=64 is beyond the model's vocabulary of 64 tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a whole number of at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5 must be a whole number of at least 1"),
        ({"ids": []}, "ids needs one tensor [S] per prompt"),
        ({"ids": [torch.ones(1, 7)]}, "ids needs one tensor [S] per prompt, got [[1, 7]]"),
    ],
)
def test_arguments_that_cannot_generate_are_refused(pools, arguments, message):
    for text in pools[2].run(misasked, arguments):
        assert message in text


@pytest.mark.parametrize("block_lens", [[40, 23], [9, 30, 12]], ids=str)
def test_all_ranks_draw_the_token_of_rank_0(pools, block_lens):
    """Whatever their own seeds are; rank 0 draws as one process with its seed."""
    first, *others = pools[len(block_lens)].run(sampled, block_lens)
    assert len(first) == len(SAMPLED)
    for ring, alone in first:
        assert torch.equal(ring, alone)
        assert len(set(ring[0, sum(block_lens) :].tolist())) > 1
    for other in others:
        for (ring, _), (wanted, _) in zip(other, first, strict=True):
            assert torch.equal(ring, wanted)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("contiguous cache", "leave contiguous_cache out"),
        ("attention", "a ring model does not know attn_name"),
        ("prompts", "the ranks pass different tokens"),
        ("two places", "the ranks pass different tokens"),
        ("shapes", "the ranks pass different tokens"),
        ("tokens", "the ranks pass different tokens"),
        ("two tokens", "one token follows a cache, [2, 1], but the tokens are [2, 2]"),
    ],
)
def test_what_a_ring_model_cannot_serve_is_refused(pools, case, message):
    for text in pools[3].run(misused, case) if "pass" in message else pools[2].run(misused, case):
        assert message in text


COSTS = [RankCost(0.1, 0.01, 1e-5), RankCost(0.1, 0.02, 2e-5), RankCost(500.0, 1.0, 1.0)]


@pytest.mark.parametrize(
    ("speeds", "layout"),
    [([3.0, 1.0, 2.0], "zigzag"), ([1, 5, 1], "contiguous"), (COSTS, "zigzag"), ("measured", "zigzag")],
    ids=str,
)
def test_one_ring_model_serves_prompts_of_any_length(pools, speeds, layout):
    """With one or two tokens, and by costs, some of the ranks are not in the ring."""
    lengths = [96, 7, 2, 1, 96]
    for results in pools[3].run(of_any_length, speeds, lengths, {"layout": layout}):
        for length, (tokens, ring, alone, continued_by_ring, continued_alone) in zip(
            lengths, results, strict=True
        ):
            assert sum(tokens) == length
            assert ring.shape == alone.shape
            assert (ring - alone).abs().max() <= 1e-5 * (alone.max() - alone.min())
            assert torch.equal(continued_by_ring, continued_alone)
    if speeds == [3.0, 1.0, 2.0]:
        assert results[0][0] == [48, 16, 32]
        assert results[2][0] == [1, 0, 1]


def test_padded_batches_are_planned_by_speed(pools):
    for speeds in ([3.0, 1.0], [1.0, 4.0]):
        for ring, alone in pools[2].run(padded_by_speed, speeds, [40, 3, 17]):
            assert torch.equal(ring, alone)


@pytest.mark.parametrize(
    ("length", "how", "message"),
    [
        (
            8,
            {"block_lens": [4, 3]},
            "the prompt has 8 tokens, but block_lens=[4, 3] are for 7; make",
        ),
        (1025, {"speeds": [1, 1]}, "seq_len=1025 is beyond the model's max_expected_seq_len=1024"),
        (8, {"speeds": [1, 0]}, "speeds=[1, 0] must be positive numbers"),
        (8, {"speeds": [1, 1, 1]}, "speeds=[1, 1, 1] needs one entry for each of 2 ranks"),
        (8, {"speeds": "fast"}, "speeds='fast' must be a list"),
        (8, {"speeds": [1, 1], "block_lens": [4, 4]}, "needs block_lens or speeds"),
        (8, {}, "needs block_lens or speeds"),
        (8, {"block_lens": [4.0, 4]}, "block_lens=4.0 must be a whole number"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(pools, length, how, message):
    for text in pools[2].run(misplanned, length, how):
        assert message in text
