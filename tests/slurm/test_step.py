"""A SLURM job on one node, with a stand-in for srun, which starts the tasks of a step and does no more."""

import json
import os
import stat
from pathlib import Path

import pytest

from ringexp.app import ExecutionSite, execute
from ringexp.config import (
    AttentionModelConfig,
    CalibrationConfig,
    Config,
    HeteroConfig,
    PartitionerConfig,
    TrackerConfig,
)
from ringexp.report.console import Console
from ringexp.slurm.step import SlurmJob, lost_task

SRUN = r"""#!/bin/bash
for argument; do
  case $argument in
    --ntasks=*) tasks=${argument#*=} ;;
    --output=*) output=${argument#*=} ;;
    --*) ;;
    *) break ;;
  esac
  shift
done
export SLURM_NTASKS=$tasks SLURM_STEP_TASKS_PER_NODE=$tasks SLURM_NODEID=0 SLURM_LAUNCH_NODE_IPADDR=127.0.0.1
for ((task = 0; task < tasks; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" >"${output/\%t/$task}" 2>&1 &
done
code=0
for job in $(jobs -p); do wait "$job" || code=$?; done
exit $code
"""


@pytest.fixture
def srun(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(SRUN)
    (folder / "srun").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def carried_out(root: Path, config: Config) -> dict:
    (outcome,) = execute(
        [(config, root / "run")], Console(), site=ExecutionSite(run_ranks=SlurmJob(1).run_ranks)
    )
    assert not isinstance(outcome, Exception), outcome
    return outcome.content


def settings(root: Path, **more) -> Config:
    return Config(
        model=AttentionModelConfig("tiny", emb_dim=256, num_heads=4, num_kv_heads=2, head_dim=64),
        partitioner=PartitionerConfig("even"),
        calibration=CalibrationConfig(min_seconds=0.02, min_samples=2),
        tracker=TrackerConfig("disabled"),
        references=False,
        repeats=3,
        warmup=1,
        output_root=str(root),
        **more,
    )


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("srun: error: n1: task 1: Killed\nsrun: Terminating StepId=3.0\n", (1, "Killed, on n1")),
        (
            "srun: error: n0: tasks 2-3: Segmentation fault (core dumped)",
            (2, "Segmentation fault (core dumped), on n0"),
        ),
        ("srun: error: gpu-7: task 0: Out Of Memory", (0, "Out Of Memory, on gpu-7")),
        ("srun: error: n0: task 0: Exited with exit code 1\n", None),
        ("srun: Terminating StepId=3.0\nsrun: error: n1: task 1: Killed", None),
        ("slurmstepd: error: *** STEP 1.0 ON n0 CANCELLED AT x ***\nsrun: error: n1: task 1: Killed", None),
        ("", None),
    ],
)
def test_the_task_that_was_killed_is_told_from_those_srun_ends(said, lost):
    assert lost_task(said) == lost


def test_the_ranks_of_a_step_run_and_are_throttled(srun, tmp_path):
    config = settings(tmp_path, hetero=HeteroConfig([50.0, 100.0]), seq_len=128)
    results = carried_out(tmp_path, config)
    assert (results["exact"], results["throttle"]) == (True, "cpu_pacing")
    assert [path.name for path in sorted(tmp_path.glob("run/ranks/*/*/logs/rank_*"))] == [
        "rank_0.log",
        "rank_1.log",
    ]


@pytest.mark.gpu
def test_the_first_task_keeps_the_mps_daemon_for_the_ranks_of_its_node(srun, tmp_path):
    """On one GPU or two: ranks that are both throttled, and fit side by side."""
    hetero = HeteroConfig([66.0, 33.0], "mps")
    config = settings(tmp_path, hetero=hetero, seq_len=512, device="cuda")
    results = carried_out(tmp_path, config)
    assert (results["exact"], results["throttle"]) == (True, "mps")
    assert results["sm_counts"][0] > results["sm_counts"][1]
    (told,) = tmp_path.glob("run/ranks/*/*/throttle_node_0.json")
    assert not Path(json.loads(told.read_text())[0]["CUDA_MPS_PIPE_DIRECTORY"]).exists()
