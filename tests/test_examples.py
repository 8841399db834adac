"""The examples of the documentation run as they say, and are right."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def run(name: str, *arguments: str, gpu: bool = False) -> str:
    """What an example prints, run by torchrun on three ranks."""
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


def check(printed: str, shares: list[float] | None) -> None:
    """The error is that of rounding, the shares are those asked for; None: those that were measured."""
    found = re.search(r"shares: \[(.*)\]", printed)
    error = re.search(r"largest error against one process.*: (\S+)", printed)
    assert found is not None
    assert error is not None
    if shares:
        assert [float(share) for share in found[1].split(", ")] == pytest.approx(shares, abs=0.02)
    assert 0 < float(error[1]) < 1e-4
