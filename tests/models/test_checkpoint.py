"""Hugging Face folders: the ring gives the logits and the greedy tokens of Hugging Face's own model."""

import json
from pathlib import Path

import pytest
import torch

from ringexp.errors import UserError
from ringexp.models.checkpoint import load_checkpoint
from ringexp.models.checkpoint_folder import load_tokenizer
from support.checkpoints import CHECKPOINTS, SHAPE, greedy, save_checkpoint
from support.command import QUICK, ringexp, run_dirs
from support.model_ranks import run_checkpoint

NEW_TOKENS = 6
BLOCK_LENS = [130, 70]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_and_tokens_are_those_of_hugging_face(pools, tmp_path, name):
    """200 tokens: Llama 3.1's scaling begins at 64 here."""
    reference = save_checkpoint(tmp_path, *CHECKPOINTS[name])
    ids = torch.randint(
        0, SHAPE["vocab_size"], (2, sum(BLOCK_LENS)), generator=torch.Generator().manual_seed(2)
    )
    with torch.inference_mode():
        logits = reference(ids).logits
    tokens = greedy(reference, ids, NEW_TOKENS)
    assert len(set(tokens[0, -NEW_TOKENS:].tolist())) > 1, "this seed repeats one token"
    results = pools[2].run(run_checkpoint, str(tmp_path), BLOCK_LENS, ids, NEW_TOKENS)
    for ring, generated in results:
        assert (ring - logits).abs().max() <= 1e-5 * (logits.max() - logits.min())
        assert torch.equal(generated, tokens)


def test_a_prompt_is_continued(tmp_path):
    folder, text = tmp_path / "checkpoint", "the quick brown fox jumps over the lazy dog, and so on."
    reference = save_checkpoint(folder, *CHECKPOINTS["llama-3.1"])
    tokenizer = load_tokenizer(folder)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert ids.shape[1] == len(text)
    tokens = greedy(reference, ids, 9)
    (tmp_path / "prompt.txt").write_text(text)
    done = ringexp(
        "model=checkpoint",
        f"model.checkpoint={folder}",
        "model.dtype=float32",
        f"prompt_file={tmp_path / 'prompt.txt'}",
        "decode_tokens=9",
        "hetero=mps_100_50",
        "tracker=disabled",
        "references=false",
        *QUICK,
        root=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    continuation = tokenizer.decode(tokens[0, len(text) :])
    assert continuation in done.stdout
    (run_dir,) = run_dirs(tmp_path)
    results = json.loads((run_dir / "results.json").read_text())
    assert sum(results["tokens"]) == len(text)
    assert (results["exact"], results["decode"]["agreeing"]) == (True, 9)
    assert results["decode"]["texts"] == [continuation]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "LlamaConfig",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "linear",
        ),
        ("MistralConfig", {"sliding_window": 64}, "sliding window of 64 tokens, which FMS does not compute"),
        ("LlamaConfig", {"head_dim": 24}, "head_dim=24, but FMS's llama has heads of hidden_size"),
        ("Qwen2Config", {}, "has a Qwen2ForCausalLM; use one of LlamaForCausalLM"),
    ],
)
def test_what_fms_does_not_compute_is_refused(tmp_path, kind, settings, message):
    save_checkpoint(tmp_path, kind, settings)
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path, torch.device("cpu"), torch.float32, 200)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=checkpoint"], "model=checkpoint needs model.checkpoint=DIR"),
        (["model=checkpoint", "model.checkpoint=/nowhere"], "/nowhere has no config.json"),
        (["prompt_text=hello"], "need the tokenizer of model=checkpoint"),
        (["model=checkpoint", "model.checkpoint={folder}", "prompt_text=abc", "prompt_file=x"], "not both"),
        (
            ["model=checkpoint", "model.checkpoint={folder}", "prompt_file=/nowhere"],
            "prompt_file=/nowhere cannot",
        ),
        (
            ["model=checkpoint", "model.checkpoint={folder}", "prompt_text=abc", "seq_len=9"],
            "prompt has 3 tokens",
        ),
    ],
)
def test_prompts_that_cannot_run_end_in_one_line(tmp_path, overrides, message):
    folder: Path = tmp_path / "checkpoint"
    save_checkpoint(folder, *CHECKPOINTS["llama"])
    done = ringexp(*(each.format(folder=folder) for each in overrides), *QUICK, root=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
