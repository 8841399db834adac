"""Faults: each ends with one clear message, keeps what was measured, and leaves nothing running."""

import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.command import QUICK, ringexp, run_dirs
from support.faults import (
    ENDLESS,
    FINITE,
    fill,
    gone,
    happened,
    rank_pids,
    small_disk,
    started,
    wandb_processes,
)
from support.wandb_records import WANDB


def test_a_killed_rank_ends_the_run_and_keeps_what_was_measured(tmp_path):
    process = started(tmp_path, *ENDLESS, "tracker=disabled")
    os.kill(rank_pids(tmp_path)[1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "rank 1 was killed by SIGKILL" in stderr.strip().splitlines()[-1]
    assert gone(tmp_path, 5)
    (results,) = tmp_path.glob("runs/*/*/results.json")
    assert '"failed"' in results.read_text()
    (iterations,) = tmp_path.glob("runs/*/*/iterations.csv")
    assert iterations.read_text().count("\n") > 4


def test_a_rank_that_ignores_sigterm_does_not_hold_the_launcher(tmp_path):
    process = started(tmp_path, *ENDLESS, "tracker=disabled")
    pids = rank_pids(tmp_path)
    os.kill(pids[0], signal.SIGSTOP)  # a stopped process does not act on SIGTERM
    began = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    process.communicate(timeout=30)
    assert time.monotonic() - began < 15
    assert gone(tmp_path, 5)


def test_killing_the_launcher_ends_the_ranks(tmp_path):
    process = started(tmp_path, *ENDLESS, "tracker=disabled")
    process.kill()
    process.wait()
    assert gone(tmp_path, 10)


def test_interrupt_ends_everything_with_one_message(tmp_path):
    process = started(tmp_path, *ENDLESS, "tracker=disabled")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert gone(tmp_path, 5)


def test_a_second_interrupt_ends_with_the_same_message(tmp_path):
    """A rank that is stopped does not act on SIGTERM, so the launcher still waits at the second interrupt."""
    process = started(tmp_path, *ENDLESS, "tracker=disabled")
    os.kill(rank_pids(tmp_path)[0], signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    (line,) = stderr.strip().splitlines()
    assert "interrupted; what was measured is kept" in line
    assert gone(tmp_path, 5)


def test_a_sweep_that_is_interrupted_twice_is_marked(tmp_path):
    sweep = ["-m", "partitioner=even,uneven", "hetero=mps_50_100", "tracker=disabled", *ENDLESS]
    process = started(tmp_path, *sweep, run="0_*")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stdout + stderr
    files = sorted(tmp_path.glob("sweeps/*/*/*/results.json"))
    assert [json.loads(file.read_text())["status"] for file in files] == ["interrupted"] * 2
    assert gone(tmp_path, 5)


def test_a_run_goes_on_without_the_reader_of_its_output(tmp_path):
    process = started(tmp_path, *FINITE, "tracker=disabled")
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    stderr = process.stderr.read()
    assert process.wait(60) == 0, stderr
    assert stderr == ""
    (run_dir,) = run_dirs(tmp_path)
    assert json.loads((run_dir / "results.json").read_text())["status"] == "complete"


def test_an_interrupted_run_says_so_and_keeps_what_it_measured(tmp_path):
    process = started(tmp_path, *ENDLESS, "tracker=disabled")
    process.terminate()
    process.communicate(timeout=30)
    (run_dir,) = run_dirs(tmp_path)
    results = json.loads((run_dir / "results.json").read_text())
    assert results["status"] == "interrupted"
    assert "asked to end" in results["reason"]
    assert len(results["latency_ms_iterations"]) >= 2
    assert sum(results["tokens"]) == 512


def test_a_stopped_rank_ends_the_run(tmp_path):
    process = started(tmp_path, *ENDLESS, "tracker=disabled")
    victim = rank_pids(tmp_path)[1]
    os.kill(victim, signal.SIGSTOP)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"rank 1 (pid {victim}) was stopped (SIGSTOP) for 10 s" in stderr.strip().splitlines()[-1]
    assert gone(tmp_path, 5)


def test_an_interrupted_sweep_goes_on_with_the_same_command(tmp_path):
    """Interrupted when the first run is complete and the second one measures."""
    sweep = ["-m", "partitioner=even,uneven,lut", "hetero=mps_50_100", "references=false", "seq_len=256"]
    sweep += ["repeats=40", "warmup=1", "tracker=disabled", "report=false", *QUICK[2:]]
    process = started(tmp_path, *sweep, run="1_*")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on" in stderr
    assert "1 of 3 runs complete" in stdout
    assert "interrupted 2_" in stdout
    assert "not begun" in stdout
    again = ringexp(*sweep, root=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "3 of 3 runs complete (1 taken from earlier ones)" in again.stdout


@pytest.fixture
def disk(tmp_path):
    """Mounts a small file system in a folder of the test."""
    with ExitStack() as mounts:

        def mounted(folder: str, size: str) -> Path:
            if not mounts.enter_context(small_disk(tmp_path / folder, size)):
                pytest.skip("cannot mount a small file system here (needs root)")
            return tmp_path / folder

        yield mounted


def test_a_full_disk_ends_the_run_and_leaves_whole_files(disk):
    small = disk("outputs", "400k")
    process = started(small, *ENDLESS, "tracker=disabled")
    fill(small)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "No space left on device" in stderr.strip().splitlines()[-1]
    assert "Traceback" not in stderr
    (run_dir,) = run_dirs(small)
    assert (run_dir / "iterations.csv").read_bytes().endswith(b"\n")
    assert json.loads((run_dir / "results.json").read_text())["status"] in ("planned", "failed")
    assert [file.name for file in run_dir.glob(".results.json*")] == []


def complete_with_a_warning(process: subprocess.Popen, run_dir: Path, warning: str) -> None:
    """All that a failing wandb may do to a run is one line."""
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 0, stderr
    assert stdout.count("warning: wandb: ") == 1
    assert warning in stdout
    assert "Traceback" not in stdout + stderr
    results = json.loads((run_dir / "results.json").read_text())
    assert results["status"] == "complete"
    assert len(results["latency_ms_iterations"]) == 100
    assert (run_dir / "iterations.csv").read_text().count("\n") == 1 + 100 * 2


def test_a_full_disk_under_wandb_leaves_the_run_complete(tmp_path, disk):
    run_dir = tmp_path / "runs" / "today" / "run"
    small = disk(run_dir / "wandb", "64k")
    process = started(tmp_path, *FINITE, f"hydra.run.dir={run_dir}")
    fill(small)
    complete_with_a_warning(process, run_dir, "No space left on device")


def test_a_killed_wandb_process_leaves_the_run_complete(tmp_path):
    process = started(tmp_path, *FINITE)
    assert happened(lambda: wandb_processes(tmp_path), 5)
    for pid in wandb_processes(tmp_path):
        os.kill(pid, signal.SIGKILL)
    (run_dir,) = run_dirs(tmp_path)
    complete_with_a_warning(process, run_dir, "")  # which words depends on the call that finds it gone


def test_a_killed_run_leaves_all_but_the_last_second_in_its_wandb_record(tmp_path):
    process = started(tmp_path, *ENDLESS)
    (iterations,) = tmp_path.glob("runs/*/*/iterations.csv")
    time.sleep(2)
    rows = iterations.read_text().splitlines()[1:]
    before = {int(row.split(",")[0]) for row in rows}
    time.sleep(2)  # what was logged by now has to be in the record
    process.kill()
    process.communicate()
    assert gone(tmp_path, 10)
    (record,) = tmp_path.glob("runs/*/*/wandb/offline-run-*")
    read = subprocess.run([WANDB, "leet", "inspect", "--json", str(record)], capture_output=True, text=True)
    entries = [json.loads(line) for line in read.stdout.splitlines() if line.startswith("{")]
    logged = {int(entry["history"]["item"]["iteration"]) for entry in entries if entry["type"] == "history"}
    assert before - logged == set()
