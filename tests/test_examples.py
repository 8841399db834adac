"""The examples of the documentation run as they say, and are right."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ringexp import UserError
from support.hf_ranks import example, ring_errors

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def run(name: str, *arguments: str, gpu: bool = False) -> str:
    """Run an example by torchrun on three ranks, and return its output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})
    done = subprocess.run(
        [*command, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "shares"),
    [
        ("plain_attention.py", ["--speeds", "4", "2", "1", "--seq-len", "700"], [0.571, 0.286, 0.143]),
        ("hf_transformers.py", [], [0.5, 0.333, 0.167]),
    ],
)
def test_an_example_runs_uneven_ranks_and_is_exact(name, arguments, shares):
    check(run(name, *arguments), shares)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["plain_attention.py", "hf_transformers.py"])
def test_an_example_is_exact_on_gpus(name):
    check(run(name, gpu=True), None)


GEMMA = {"head_dim": 16, "attn_logit_softcapping": None}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [3.0] * 8,
    "original_max_position_embeddings": 32,
}
RIGHT = [
    *(
        (kind, {})
        for kind in ("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Qwen3Moe", "Gemma", "Granite")
    ),
    *((kind, {}) for kind in ("Phi", "Phi3", "Olmo2", "Olmo3", "Starcoder2", "GPTNeoX", "SmolLM3", "Cohere")),
    *((kind, {}) for kind in ("Ernie4_5", "Glm4", "Ministral3", "SeedOss")),
    ("Gemma2", GEMMA),
    ("Gemma3Text", {"head_dim": 16}),
    ("Qwen3", {"rope_parameters": YARN}),
    ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    ("Mistral", {"sliding_window": 50}),
]
REFUSED = [
    ("Gemma2", {"head_dim": 16}, "softcap=50.0 is not handled"),
    ("Gemma2", GEMMA | {"sliding_window": 20}, "layer_type=sliding_attention is not handled for 50 tokens"),
    ("GptOss", {"head_dim": 16, "sliding_window": 64}, "s_aux=... is not handled"),
    ("GptOss", {"head_dim": 16, "sliding_window": 20}, "layer_type=sliding_attention is not handled"),
    ("Mistral", {"sliding_window": 49}, "sliding_window=49 is not handled for 50 tokens"),
    ("Phi3", {"rope_parameters": LONG}, "rope_type=longrope is not handled"),
    (
        "Qwen3",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        "rope_type=dynamic is not handled",
    ),
    ("Llama4Text", {}, "model_type=llama4_text is not handled"),
    ("Mamba", {}, "model_type=mamba is not handled"),
]


def test_models_of_hugging_face_are_right_on_a_ring(pools):
    for errors in pools[2].run(ring_errors, RIGHT, 50):
        for (kind, settings), error in zip(RIGHT, errors, strict=True):
            assert isinstance(error, float), f"{kind} {settings}: {error}"
            assert error <= 1e-5, f"{kind} {settings}"


def test_what_the_ring_would_get_wrong_is_refused_by_name(pools):
    cases = [(kind, settings) for kind, settings, _ in REFUSED]
    for told in pools[2].run(ring_errors, cases, 50):
        for (_, _, message), text in zip(REFUSED, told, strict=True):
            assert message in str(text)
            assert "\n" not in str(text)


@pytest.mark.parametrize(
    ("mask", "asked", "message"),
    [
        (torch.zeros(1), {}, "attention_mask is not handled"),
        (None, {"dropout": 0.1}, "dropout=0.1 is not handled"),
        (None, {"is_causal": False}, "is_causal=False is not handled"),
        (None, {"position_bias": torch.zeros(1)}, "position_bias=... is not handled"),
        (None, {"something_new": 0}, "something_new=0 is not handled"),
    ],
)
def test_what_a_layer_may_ask_of_attention_is_listed(mask, asked, message):
    with pytest.raises(UserError, match=re.escape(message)):
        example().check_attention(None, 50, mask, asked)


def check(printed: str, shares: list[float] | None) -> None:
    """The error is that of rounding, the shares are those asked for; None: those that were measured."""
    found = re.search(r"shares: \[(.*)\]", printed)
    error = re.search(r"largest error against one process.*: (\S+)", printed)
    assert found is not None
    assert error is not None
    if shares:
        assert [float(share) for share in found[1].split(", ")] == pytest.approx(shares, abs=0.02)
    assert 0 < float(error[1]) < 1e-4
