"""A kernel and a partitioner of another distribution, and a user's own folder of settings, in a real run."""

import json
import os
from pathlib import Path

import pytest

from support.command import QUICK, ringexp, run_dirs

SPECS = """
from ringexp.choices import KernelSpec, PartitionerSpec

KERNEL = KernelSpec(
    name="plain", summary="softmax as in a textbook", implementation="their_ringexp.plain", devices=("cpu",)
)
PARTITIONER = PartitionerSpec(
    name="first_more", summary="rank 0 gets more", implementation="their_ringexp.weights:first_more"
)
"""

PLAIN = """
import torch

from ringexp.kernels import Kernel
from ringexp.planning import BlockShape


def why_unavailable(device, dtype, head_dim):
    return None


def kernel(device, dtype, head_dim):
    return Kernel("plain", block)


def block(q, k, v, shape, softmax_scale):
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = q @ k.mT * softmax_scale
    if shape is BlockShape.CAUSAL:
        scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(-1) @ v, scores.logsumexp(-1)
"""

WEIGHTS = """
def first_more(source, settings):
    return [settings["factor"], *[1] * (len(source.percentages) - 1)]
"""

ENTRY_POINTS = """[ringexp.kernels]
plain = their_ringexp.specs:KERNEL
[ringexp.partitioners]
first_more = their_ringexp.specs:PARTITIONER
"""

SETTINGS = """# @package _global_
defaults:
  - override /model: attention_tiny
  - override /kernel: plain
  - override /partitioner: thrice
seq_len: 1024
"""

THRICE = """defaults:
  - /schema/partitioner@_here_
  - _self_
name: first_more
options: {factor: 3}
"""


@pytest.fixture
def theirs(tmp_path) -> dict[str, str]:
    """Install another distribution and a folder of settings; return the environment that finds the former."""
    package, info = tmp_path / "site" / "their_ringexp", tmp_path / "site" / "their_ringexp-1.0.dist-info"
    contents = {"__init__": "", "specs": SPECS, "plain": PLAIN, "weights": WEIGHTS}
    write(package, {f"{name}.py": text for name, text in contents.items()})
    metadata = "Metadata-Version: 2.1\nName: their-ringexp\nVersion: 1.0\n"
    write(info, {"METADATA": metadata, "entry_points.txt": ENTRY_POINTS})
    write(tmp_path / "settings" / "experiment", {"theirs.yaml": SETTINGS})
    write(tmp_path / "settings" / "partitioner", {"thrice.yaml": THRICE})
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])}


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_a_kernel_and_a_partitioner_from_outside_run(theirs, tmp_path):
    settings = ("--config-dir", str(tmp_path / "settings"), "experiment=theirs", "kernel=plain")
    done = ringexp(
        *settings, "device=cpu", "references=false", "tracker=disabled", *QUICK, root=tmp_path, env=theirs
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs(tmp_path)
    results = json.loads((run_dir / "results.json").read_text())
    assert (results["kernel"], results["partitioner"]) == ("plain", "first_more")
    assert results["tokens"] == [768, 256]
    assert results["exact"] is True


def test_choices_from_outside_are_listed_and_suggested(theirs, tmp_path):
    done = ringexp("kernel=plane", root=tmp_path, env=theirs)
    assert "kernel=plane is unknown" in done.stderr
    assert "did you mean plain?" in done.stderr
    assert "kernel: auto, cudnn, flash, hopper, plain," in ringexp("--help", root=tmp_path, env=theirs).stdout
