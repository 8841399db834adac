"""A run compares its checkpoint with transformers' own model, and fails if they differ."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch

from ringexp.models.checkpoints import check as checkpoint_check
from ringexp.models.checkpoints.check import (
    CHECKPOINT_BOUND,
    CheckpointCheck,
    compare_with_hugging_face,
)
from ringexp.models.checkpoints.load import load_checkpoint
from support.checkpoints import CHECKPOINTS, ODD, save_model
from support.command import QUICK, ringexp, run_dirs

GELU_AS_SWISH = """\
from ringexp.models.checkpoints import config as checkpoint_config

checkpoint_config.ACTIVATIONS["gelu"] = "swish"
"""
"""A sitecustomize.py: Python imports it as each process starts, the ranks too."""


def compared(folder, dtype=torch.float32) -> CheckpointCheck:
    model = load_checkpoint(folder, torch.device("cpu"), dtype, 100)
    with torch.inference_mode():
        return compare_with_hugging_face(model, folder, torch.arange(90).unsqueeze(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["llama-3.1", "granite", "qwen3-tied", "mixtral"])
def test_a_right_checkpoint_is_off_by_rounding_in_any_dtype(tmp_path, name, dtype):
    kind, settings = CHECKPOINTS[name]
    save_model(tmp_path, kind, ODD | settings)
    check = compared(tmp_path, dtype)
    assert check.left_out is None
    assert check.error is not None
    assert 0 < check.error < 3e-6
    assert check.exact


@pytest.mark.parametrize("value", [1.001, math.nan])
def test_a_wrong_parameter_is_seen(tmp_path, value):
    save_model(tmp_path, "LlamaConfig", ODD)
    model = load_checkpoint(tmp_path, torch.device("cpu"), torch.float32, 100)
    with torch.inference_mode():
        model.get_parameter("base_model.layers.1.ln.weight").mul_(value)
        check = compare_with_hugging_face(model, tmp_path, torch.arange(90).unsqueeze(0))
    assert not check.exact
    assert "DIR is computed otherwise than by Hugging Face's own model" in (check.why_inexact("DIR") or "")


def test_the_bound_lies_between_rounding_and_faults():
    assert CheckpointCheck(error=CHECKPOINT_BOUND).exact
    assert CheckpointCheck(error=CHECKPOINT_BOUND).why_inexact("DIR") is None
    assert not CheckpointCheck(error=1.001 * CHECKPOINT_BOUND).exact
    assert not CheckpointCheck(error=math.nan).exact
    assert 1e-5 < CHECKPOINT_BOUND < 1e-3


def test_too_little_memory_leaves_the_check_out(tmp_path, monkeypatch):
    save_model(tmp_path, "LlamaConfig", ODD)
    monkeypatch.setattr(checkpoint_check, "_free_bytes", lambda device: 2**18)
    check = compared(tmp_path)
    assert check.error is None
    assert check.left_out == "transformers' copy of the weights needs 0.0 GiB, and cpu has 0.0"


def test_free_memory_is_known():
    assert 2**26 < checkpoint_check._free_bytes(torch.device("cpu")) < 2**50


def test_a_checkpoint_that_is_computed_otherwise_fails_the_run(tmp_path):
    folder, custom = tmp_path / "checkpoint", tmp_path / "custom"
    save_model(folder, "LlamaConfig", ODD | {"hidden_act": "gelu"})
    custom.mkdir()
    (custom / "sitecustomize.py").write_text(GELU_AS_SWISH)
    path = os.pathsep.join(filter(None, [str(custom), os.environ.get("PYTHONPATH")]))
    run = ("model=checkpoint", f"model.checkpoint={folder}", "model.dtype=bfloat16", "seq_len=200")
    run += ("hetero=mps_100_50", "tracker=disabled", "references=false", "resume=true", *QUICK)
    failed = ringexp(*run, root=tmp_path, env={"PYTHONPATH": path})
    assert failed.returncode == 1, failed.stderr
    line = failed.stderr.strip().splitlines()[-1]
    assert f"checkpoint {folder} is computed otherwise than by Hugging Face's own model" in line
    (run_dir,) = run_dirs(tmp_path)
    results = json.loads((run_dir / "results.json").read_text())
    assert (results["exact"], results["error_checkpoint"] > CHECKPOINT_BOUND) == (False, True)
    right = ringexp(*run, root=tmp_path)
    assert right.returncode == 0, right.stderr
    results = [json.loads((folder / "results.json").read_text()) for folder in run_dirs(tmp_path)]
    assert sorted(each["exact"] for each in results) == [False, True]
    assert min(each["error_checkpoint"] for each in results) < 3e-6
