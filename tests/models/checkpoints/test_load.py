"""Hugging Face folders: the ring gives the logits and the greedy tokens of Hugging Face's own model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ringexp.errors import UserError
from ringexp.models.checkpoints.folder import load_tokenizer
from ringexp.models.checkpoints.load import from_pretrained, load_checkpoint
from ringexp.models.fms.strategy import get_model
from support.checkpoints import (
    CHECKPOINTS,
    HONOURED,
    LLAMA_31,
    ODD,
    SHAPE,
    distance,
    greedy,
    save_checkpoint,
    save_model,
)
from support.command import QUICK, ringexp, run_dirs
from support.model_ranks import ring_logits, run_checkpoint

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


@pytest.mark.parametrize("name", HONOURED)
def test_settings_are_honoured_as_by_hugging_face(tmp_path, name):
    kind, settings = HONOURED[name]
    save_model(tmp_path, kind, ODD | settings)
    assert distance(tmp_path) < 3e-6
    assert distance(tmp_path, torch.float64) < 2e-6


@pytest.mark.parametrize("theta_and_scaling", [{"rope_type": "llama3"}, {"type": "llama3"}])
def test_old_configs_are_read_as_new_ones(tmp_path, theta_and_scaling):
    """Transformers 4 wrote configs like these."""
    save_model(tmp_path, "LlamaConfig", ODD | {"rope_parameters": LLAMA_31})
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    scaling = dict(config.pop("rope_parameters"))
    del scaling["rope_type"]
    old = {"_name_or_path": "x", "torch_dtype": config.pop("dtype"), "rope_theta": scaling.pop("rope_theta")}
    path.write_text(json.dumps(config | old | {"rope_scaling": scaling | theta_and_scaling}))
    assert distance(tmp_path) < 3e-6


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen3Config", "MixtralConfig"])
@pytest.mark.parametrize("present", ["both, unequal", "both, equal", "head alone"])
def test_a_tied_model_has_the_head_that_hugging_face_gives_it(tmp_path, kind, present):
    save_model(tmp_path, kind, ODD | {"tie_word_embeddings": True})
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = torch.randn_like(embedding) if "unequal" in present else embedding.clone()
    if present == "head alone":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, path, {"format": "pt"})
    assert distance(tmp_path) < 3e-6
    model = load_checkpoint(tmp_path, torch.device("cpu"), torch.float32, 8)
    head, embedding = model.get_parameter("head.weight"), model.get_parameter("base_model.embedding.weight")
    assert (head is embedding) == ("unequal" not in present)


def test_experts_stacked_in_the_file_are_loaded(tmp_path):
    model = save_model(tmp_path, "MixtralConfig", ODD | {"num_local_experts": 4})
    tensors = {name: x.clone() for name, x in model.state_dict().items()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in tensors
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert distance(tmp_path) < 3e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_take_the_dtype_that_is_asked_for(tmp_path, dtype):
    save_model(tmp_path, "LlamaConfig", ODD)
    model = from_pretrained(tmp_path, data_type=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    ours = model.get_parameter("base_model.layers.2.ff_sub_layer.w2.weight")
    assert torch.equal(ours, theirs.get_parameter("model.layers.2.mlp.down_proj.weight"))


@pytest.mark.parametrize("hidden", [29 * 2, 3584 // 4, 90, 1100])
def test_no_feed_forward_width_is_rounded(tmp_path, hidden):
    """FMS takes it as a factor: intermediate_size / hidden_size * hidden_size may come out one too small."""
    for inner in (37, 115, 1234):
        settings = {
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_attention_heads": 1,
            "head_dim": 2,
        }
        save_model(
            tmp_path, "MistralConfig", ODD | settings | {"num_key_value_heads": 1, "num_hidden_layers": 1}
        )
        load_checkpoint(tmp_path, torch.device("cpu"), torch.float32, 8)


@pytest.mark.parametrize("form", ["variant", "model_path", "positional"])
def test_get_model_loads_in_all_of_fms_forms(pools, tmp_path, form):
    """One loader for every way in: FMS's own loses the rope of Llama 3.1."""
    reference = save_checkpoint(tmp_path, *CHECKPOINTS["llama-3.1"])
    ids = torch.randint(
        0, SHAPE["vocab_size"], (2, sum(BLOCK_LENS)), generator=torch.Generator().manual_seed(2)
    )
    with torch.inference_mode():
        logits = reference(ids).logits
    for ring in pools[2].run(ring_logits, form, str(tmp_path), BLOCK_LENS, ids):
        assert (ring - logits).abs().max() <= 1e-5 * (logits.max() - logits.min())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs either variant or model_path"),
        ({"variant": "DIR", "model_path": "DIR"}, "needs either variant or model_path"),
        ({"variant": "DIR", "nlayers": 1}, "nlayers=1 does not go with"),
        ({"variant": "DIR", "rope_theta": 1e6}, "rope_theta=1000000.0 does not go with"),
        ({"variant": "DIR", "source": "meta"}, "source=meta does not go with"),
        ({"variant": "DIR", "linear_config": {"linear_type": "gptq"}}, "use None"),
        ({"variant": "DIR", "checkpoint_sharding": "tp"}, "checkpoint_sharding=tp"),
        ({"variant": "DIR", "data_type": "int8"}, "data_type=int8 cannot be computed with"),
        ({"variant": "DIR", "data_type": "nonsense"}, "data_type=nonsense cannot be computed with"),
        ({"model_path": "/no where"}, "/no where is neither a folder nor an id"),
        ({"variant": "DIR", "max_expected_seq_len": 65}, "sliding window of 64 tokens"),
    ],
)
def test_arguments_that_are_not_honoured_are_refused(tmp_path, arguments, message):
    save_model(tmp_path, "MistralConfig", ODD | {"sliding_window": 64})
    arguments = {name: str(tmp_path) if value == "DIR" else value for name, value in arguments.items()}
    with pytest.raises(UserError) as error:
        from_pretrained(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("hf_configured", {"variant": "DIR"}),
        ("llama", {"variant": "7b", "model_path": "DIR", "source": "hf"}),
    ],
)
def test_other_ways_to_load_from_hugging_face_are_refused(architecture, arguments):
    with pytest.raises(UserError, match='on a ring use "hf_pretrained"'):
        get_model(architecture, distributed_strategy="ring", block_lens=[8], **arguments)


def test_arguments_that_change_nothing_are_taken(tmp_path):
    save_model(tmp_path, "MistralConfig", ODD | {"sliding_window": 64})
    model = from_pretrained(
        model_path=tmp_path, source="hf", trust_remote_code=True, override_hf_pretrained_config=True
    )
    config: Any = model.config
    assert config.max_expected_seq_len == 64  # the window


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
    assert "checkpoint error" in done.stdout
    assert (results["exact"], results["decode"]["agreeing"]) == (True, 9)
    assert 0 < results["error_checkpoint"] < 3e-6
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
