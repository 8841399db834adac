"""Sweeps on a real SLURM with two nodes: started, cancelled, ended by signals, gone on with."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.command import QUICK, command, ranks_alive, ringexp

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

SWEEP = (
    "-m",
    "hydra/launcher=slurm",
    "hydra.launcher.nodes=2",
    "model=attention_tiny",
    "hetero=mps_50_100",
    "references=false",
    "tracker=disabled",
    "report=false",
    "calibration.min_seconds=0.02",
    "calibration.min_samples=2",
)
ENDLESS = (*SWEEP, "partitioner=even,uneven", "seq_len=512", "repeats=100000")


def statuses(root: Path) -> list[dict]:
    """results.json of the runs of the newest sweep, in order; empty for one without."""
    sweep = max(root.glob("sweeps/*/*"), key=lambda path: path.stat().st_mtime)
    runs = sorted(path for path in sweep.glob("[0-9]*_*"))
    files = [run / "results.json" for run in runs]
    return [json.loads(file.read_text()) if file.exists() else {} for file in files]


def lines(root: Path, run: int) -> int:
    return sum(file.read_text().count("\n") for file in root.glob(f"sweeps/*/*/{run}_*/iterations.csv"))


def wait_for(happened: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def jobs(root: Path) -> list[str]:
    """The numbers of SLURM's jobs that run for `root`."""
    listed = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True)
    found = []
    for job in listed.stdout.split():
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
        if f"Command={root}" in shown.stdout:
            found.append(job)
    return found


def heed_ctrl_c() -> None:
    """Tests that run in the background ignore SIGINT, and what they start would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a sweep and return once `run` of it measures; leaves no job behind."""

    def started(*overrides: str, run: int = 0) -> subprocess.Popen:
        process = subprocess.Popen(
            command(*overrides, root=tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_ctrl_c,
        )
        processes.append(process)
        wait_for(lambda: lines(tmp_path, run) > 4)
        return process

    processes: list[subprocess.Popen] = []
    yield started
    for job in jobs(tmp_path):
        subprocess.run(["scancel", job], check=False)
    for process in processes:
        process.kill()
        process.communicate()


def test_a_sweep_runs_on_two_nodes_in_one_job_and_is_not_repeated(tmp_path):
    sweep = (*SWEEP, "partitioner=even,lut", "seq_len=256,512", "repeats=3", "warmup=1")
    done = ringexp(*sweep, root=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs complete; everything" in done.stdout
    assert done.stdout.count("submitted job") == 1
    results = statuses(tmp_path)
    assert [result["exact"] for result in results] == [True] * 4
    assert all(len(result["environment"]["command"]) > 8 for result in results)
    (rank_set,) = tmp_path.glob("sweeps/*/*/0_*/ranks/0/0/rank_set.json")
    assert len(json.loads(rank_set.read_text())["machine"]["nodes"]) == 2
    again = ringexp(*sweep, root=tmp_path)
    assert "4 of 4 runs complete (4 taken from earlier ones)" in again.stdout
    assert "submitted" not in again.stdout


def test_ranks_are_spread_over_the_nodes_in_rank_order(tmp_path):
    """Three ranks on two nodes, each writes where it is; the first two share one."""
    prolog = tmp_path / "where.sh"
    prolog.write_text(f"#!/bin/sh\necho $SLURM_PROCID $SLURMD_NODENAME >> {tmp_path}/where\n")
    prolog.chmod(0o755)
    sweep = [item for item in SWEEP if not item.startswith("hetero=")]
    sweep += ["hetero.percentages=[100,50,25]", f"hydra.launcher.srun=['--task-prolog={prolog}']"]
    done = ringexp(*sweep, "seq_len=256", "repeats=3", root=tmp_path)
    assert done.returncode == 0, done.stderr
    where = dict(line.split() for line in (tmp_path / "where").read_text().splitlines()[-3:])
    assert where == {"0": "n0", "1": "n0", "2": "n1"}


def test_a_cancelled_job_is_marked_and_keeps_what_was_measured(tmp_path, start):
    process = start(*ENDLESS)
    (job,) = jobs(tmp_path)
    subprocess.run(["scancel", job], check=True)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 1
    begun, waiting = statuses(tmp_path)
    assert (begun["status"], begun["reason"]) == ("interrupted", "asked to end (SIGTERM)")
    assert len(begun["latency_ms_iterations"]) >= 2
    assert (waiting["status"], waiting["reason"][:9]) == ("interrupted", "not begun")
    assert "Traceback" not in stderr
    assert ranks_alive(tmp_path) == []


def test_a_pending_job_that_is_cancelled_is_marked(tmp_path):
    """A job that wants more than there is free waits; it is cancelled before it begins."""
    holder = subprocess.run(
        ["sbatch", "--parsable", "--exclusive", "-N2", "-o/dev/null", "--wrap", "sleep 300"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    process = subprocess.Popen(
        command(*ENDLESS, root=tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: jobs(tmp_path))
        subprocess.run(["scancel", *jobs(tmp_path)], check=True)
        process.communicate(timeout=60)
    finally:
        subprocess.run(["scancel", holder], check=True)
        process.kill()
    reasons = [result["reason"] for result in statuses(tmp_path)]
    assert len(reasons) == 2
    assert all("ended (CANCELLED)" in reason for reason in reasons)


def test_ctrl_c_cancels_the_job(tmp_path, start):
    process = start(*ENDLESS)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr
    assert "0 of 2 runs complete" in stdout
    assert [result["status"] for result in statuses(tmp_path)] == ["interrupted"] * 2
    assert jobs(tmp_path) == []
    assert ranks_alive(tmp_path) == []


def test_after_the_time_limit_the_same_command_goes_on(tmp_path, start):
    """SLURM's signal before the limit, sent by hand, when one run is complete and the next one measures."""
    sweep = (*SWEEP, "partitioner=even,uneven", "seq_len=256", "repeats=60", "warmup=1")
    process = start(*sweep, run=1)
    subprocess.run(["scancel", "--signal=USR2", *jobs(tmp_path)], check=True)
    process.communicate(timeout=90)
    done, ended = statuses(tmp_path)
    assert done["status"] == "complete"
    assert ended["status"] == "interrupted"
    assert "time limit is near" in ended["reason"]
    again = ringexp(*sweep, root=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "2 of 2 runs complete (1 taken from earlier ones)" in again.stdout


def test_a_requeued_job_repeats_nothing_that_finished(tmp_path, start):
    """SLURM also does this after the loss of a node: it starts the job again, under its own number."""
    process = start(*SWEEP, "partitioner=even,uneven", "seq_len=256", "repeats=60", "warmup=1", run=1)
    first = statuses(tmp_path)[0]
    subprocess.run(["scontrol", "requeue", *jobs(tmp_path)], check=True)
    process.communicate(timeout=150)
    assert process.returncode == 0
    results = statuses(tmp_path)
    assert [result["status"] for result in results] == ["complete"] * 2
    assert results[0]["latency_ms_iterations"] == first["latency_ms_iterations"]


def test_a_killed_rank_is_named_and_the_next_run_gets_new_ranks(tmp_path, start):
    process = start(*SWEEP, "partitioner=even,uneven", "seq_len=256", "repeats=60", "warmup=1")
    (victim,) = [pid for pid in rank_processes(tmp_path) if b"RANK=1" in environment(pid)]
    os.kill(victim, signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    failed, done = statuses(tmp_path)
    assert failed["status"] == "failed"
    assert "rank 1 was killed by SIGKILL" in stderr
    assert done["status"] == "complete"


def test_a_killed_task_is_named_and_not_its_victim(tmp_path, start):
    """The task that watches over a rank: the rank dies with it, and neither leaves a word."""
    process = start(*SWEEP, "partitioner=even", "seq_len=256", "repeats=100000")
    (rank,) = [pid for pid in rank_processes(tmp_path) if b"RANK=1" in environment(pid)]
    os.kill(int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    (failed,) = statuses(tmp_path)
    assert failed["status"] == "failed"
    assert failed["reason"].startswith("the task of rank 1 ended: Killed, on n1, says srun; its log: ")
    assert "the task of rank 1 ended" in stderr
    assert "by peer" not in stderr


def test_the_secret_is_in_the_ranks_environment_only(tmp_path, start):
    """Not on a command line, in a file, or in what SLURM tells of job and step."""
    start(*SWEEP, "partitioner=even", "seq_len=256", "repeats=100000")
    variable = next(
        name for name in environment(rank_processes(tmp_path)[0]) if name.startswith(b"RINGEXP_SECRET=")
    )
    secret = variable.partition(b"=")[2]
    assert len(secret) == 64
    lines = b"".join(read(file) for file in Path("/proc").glob("[0-9]*/cmdline"))
    assert b"ringexp.slurm.task" in lines
    assert secret not in lines
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name == "rank_set.json" for file in files)
    assert [file for file in files if secret in file.read_bytes()] == []
    for asked in (
        ["scontrol", "show", "job", "-dd"],
        ["scontrol", "show", "step"],
        ["squeue", "-s", "-o", "%all"],
    ):
        said = subprocess.run(asked, capture_output=True, check=True).stdout
        assert said
        assert secret not in said


def read(file: Path) -> bytes:
    """Return the content of a /proc file; b"" if the file's process has ended."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_the_job_outlives_a_killed_launcher(tmp_path, start):
    sweep = (*SWEEP, "partitioner=even", "seq_len=256", "repeats=60", "warmup=1")
    process = start(*sweep)
    process.kill()
    wait_for(lambda: not jobs(tmp_path))
    assert [result["status"] for result in statuses(tmp_path)] == ["complete"]
    again = ringexp(*sweep, root=tmp_path)
    assert "1 of 1 runs complete (1 taken from earlier ones)" in again.stdout


def test_what_slurm_refuses_is_one_line(tmp_path):
    done = ringexp(*SWEEP, "hydra.launcher.partition=nowhere", *QUICK, root=tmp_path)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]  # before it, sbatch's own two
    assert "SLURM does not take the job: sbatch: error: invalid partition specified: nowhere" in line
    assert "Traceback" not in done.stderr


def rank_processes(root: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"ringexp.worker.rank\0" in line and str(root).encode() in line:
            found.append(int(entry.name))
    return found


def environment(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
