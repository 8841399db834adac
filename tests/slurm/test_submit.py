"""Code for the cluster that needs no cluster: settings, grouping, tasks, and submitit's own executor."""

import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ringexp.app.slurm_job import carry_out
from ringexp.config import Config, HeteroConfig, PartitionerConfig, SlurmConfig
from ringexp.errors import UserError
from ringexp.slurm import submit
from ringexp.slurm import task as slurm_task
from ringexp.slurm.settings import validate
from ringexp.slurm.submit import groups
from support.command import QUICK, ringexp


def test_runs_that_can_share_ranks_share_a_job():
    def run(name: str, percentages: list[float]) -> tuple[Config, Path]:
        return Config(partitioner=PartitionerConfig(name), hetero=HeteroConfig(percentages)), Path(name)

    runs = [run("even", [50, 100]), run("even", [25, 100]), run("lut", [50, 100])]
    assert groups(runs) == [[runs[0], runs[2]], [runs[1]]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": "pbs"}, "executor=pbs: choose one of slurm, local"),
        ({"nodes": 0}, "nodes=0 must be at least 1"),
        ({"time_min": 1, "end_signal_s": 90}, "end_signal_s=90 must be less than the time limit"),
        ({"executor": "local", "nodes": 2}, "the local executor has one node"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        validate(SlurmConfig(**settings))


@pytest.mark.parametrize(("node", "tasks"), [("0", 2), ("2", 2), ("3", 1)])
def test_tasks_of_a_node_are_read_from_slurms_list(monkeypatch, node, tasks):
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x3),1")
    monkeypatch.setenv("SLURM_NODEID", node)
    assert slurm_task._tasks_here() == tasks


def test_the_interface_towards_this_machine_is_the_loopback():
    assert slurm_task.interface_towards("127.0.0.1") == "lo"
    assert slurm_task.interface_towards("no address") is None


def test_the_local_executor_takes_the_same_path(tmp_path):
    sweep = ("-m", "hydra/launcher=slurm_local_debug", "seq_len=128", "references=false")
    done = ringexp(*sweep, "tracker=disabled", *QUICK, root=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "submitted job" in done.stdout
    assert "1 of 1 runs complete" in done.stdout
    (pickled,) = tmp_path.glob("sweeps/*/*/0_*/submitted/*_result.pkl")
    assert pickled.stat().st_size > 0


def test_what_is_submitted_is_for_the_user_alone(tmp_path, monkeypatch):
    """The job unpickles it."""
    modes = []

    def executor(folder: Path, *settings: object) -> SimpleNamespace:
        modes.append(stat.S_IMODE(folder.stat().st_mode))
        return SimpleNamespace(submit=lambda *job: SimpleNamespace(job_id="1"))

    monkeypatch.setattr(submit, "_executor", executor)
    submit._submit([(Config(), tmp_path / "run")], SlurmConfig(), carry_out)
    assert modes == [0o700]


def test_without_slurm_the_launcher_says_so(tmp_path):
    path = os.path.dirname(sys.executable)
    done = ringexp("-m", "hydra/launcher=slurm", "seq_len=128", root=tmp_path, env={"PATH": path})
    assert done.returncode == 2
    assert "hydra/launcher=slurm needs srun on PATH" in done.stderr.strip().splitlines()[-1]


def test_a_run_that_is_no_sweep_does_not_quietly_stay_here(tmp_path):
    done = ringexp("hydra/launcher=slurm", "seq_len=128", root=tmp_path)
    assert done.returncode == 2
    assert "hydra/launcher=slurm is for sweeps, also of one run: add -m" in done.stderr
    assert not list(tmp_path.glob("runs/*/*/ranks"))


def test_a_mistyped_setting_of_the_launcher_is_named(tmp_path):
    done = ringexp("-m", "hydra/launcher=slurm", "hydra.launcher.partitoin=a", root=tmp_path)
    assert done.returncode == 2
    assert "hydra.launcher.partitoin" in done.stderr
