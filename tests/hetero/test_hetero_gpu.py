"""The throttles on a real GPU: each rank in its own process, as in a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ringexp.hetero.mps_control import CONTROL_PROGRAM, PIPE_DIRECTORY_ENV, processes
from ringexp.hetero.throttle import host_throttle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RANK = """
import json, sys, torch
from ringexp.hetero.throttle import rank_throttle

def matmul_ms(x):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        x @ x
    begin.record()
    for _ in range(10):
        x @ x
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)

def graph_ms(x, stream):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        x @ x
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(10):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)

x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
free_ms = matmul_ms(x)
with rank_throttle(sys.argv[1], float(sys.argv[2]), "cuda:0") as applied:
    limited_ms = matmul_ms(x)
    captured_ms = graph_ms(x, applied.stream)
after_ms = matmul_ms(x)
print(json.dumps({
    "sm_count": applied.sm_count, "sm_total": applied.sm_total, "free_ms": free_ms,
    "limited_ms": limited_ms, "captured_ms": captured_ms, "after_ms": after_ms,
}))
"""


def run_rank(name: str, percentage: float, env: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-c", RANK, name, str(percentage)]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(shutil.which(CONTROL_PROGRAM) is None, reason=f"needs {CONTROL_PROGRAM}")
def test_mps_grants_each_rank_its_percentage_and_leaves_no_daemon(tmp_path: Path):
    percentages = [100, 50, 10]
    with host_throttle("mps", percentages, tmp_path) as envs:
        ranks = [run_rank("mps", share, env) for share, env in zip(percentages, envs, strict=True)]
        assert processes(envs[0][PIPE_DIRECTORY_ENV])
    assert not processes(envs[0][PIPE_DIRECTORY_ENV])
    for share, rank in zip(percentages, ranks, strict=True):
        assert abs(rank["sm_count"] / rank["sm_total"] - share / 100) < 0.05
    assert ranks[0]["limited_ms"] < ranks[1]["limited_ms"] < ranks[2]["limited_ms"]


PRODUCTS = """
import sys, torch
from ringexp.hetero.throttle import rank_throttle

with rank_throttle(sys.argv[1], float(sys.argv[2]), "cuda:0") as applied:
    shapes = ((1409, 4096, 4096), (2049, 4096, 4096), (1000, 14336, 4096), (4097, 4096, 14336))
    for rows, columns, depth in shapes:
        x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
        layer = torch.nn.Linear(depth, columns, device="cuda", dtype=torch.bfloat16)
        for bias in (None, layer.bias):
            for _ in range(3):
                out = torch.nn.functional.linear(x, layer.weight, bias)
                exact = x.double() @ layer.weight.double().T + (0 if bias is None else bias.double())
                torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)
"""


@pytest.mark.parametrize("percentage", [20, 40, 60, 66, 80])
@pytest.mark.parametrize("throttle", ["mps", "green_context"])
def test_products_are_right_under_every_throttle(tmp_path: Path, throttle: str, percentage: float):
    """cuBLAS leaves tiles out at some SM counts under MPS unless it is held back."""
    if throttle == "mps" and shutil.which(CONTROL_PROGRAM) is None:
        pytest.skip(f"needs {CONTROL_PROGRAM}")
    with host_throttle(throttle, [percentage], tmp_path) as (env,):
        command = [sys.executable, "-c", PRODUCTS, throttle, str(percentage)]
        done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_green_context_limits_the_current_stream_and_graphs_captured_on_it():
    rank = run_rank("green_context", 25, {})
    assert abs(rank["sm_count"] / rank["sm_total"] - 0.25) < 0.1
    assert rank["limited_ms"] > 2 * rank["free_ms"]
    assert rank["captured_ms"] > 2 * rank["free_ms"]
    assert rank["after_ms"] < 1.5 * rank["free_ms"]
