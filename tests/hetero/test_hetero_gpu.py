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


def test_a_green_context_limits_the_current_stream_and_graphs_captured_on_it():
    rank = run_rank("green_context", 25, {})
    assert abs(rank["sm_count"] / rank["sm_total"] - 0.25) < 0.1
    assert rank["limited_ms"] > 2 * rank["free_ms"]
    assert rank["captured_ms"] > 2 * rank["free_ms"]
    assert rank["after_ms"] < 1.5 * rank["free_ms"]
