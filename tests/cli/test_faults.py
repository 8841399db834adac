"""Faults: each ends with one clear message, keeps what was measured, and leaves nothing running."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.command import QUICK, ringexp, run_dirs
from support.faults import ENDLESS, gone, happened, rank_pids, started


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
def small_disk(tmp_path):
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("cannot mount a small file system here (needs root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_leaves_whole_files(small_disk):
    process = started(small_disk, *ENDLESS, "tracker=disabled")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"0" * 4096) == 4096:
                pass
        except OSError:
            pass
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "No space left on device" in stderr.strip().splitlines()[-1]
    assert "Traceback" not in stderr
    (run_dir,) = run_dirs(small_disk)
    assert (run_dir / "iterations.csv").read_bytes().endswith(b"\n")
    assert json.loads((run_dir / "results.json").read_text())["status"] in ("planned", "failed")
    assert [file.name for file in run_dir.glob(".results.json*")] == []


def wandb_processes(root: Path) -> list[int]:
    """The wandb processes of the ranks that run for `root`."""
    ranks = rank_pids(root)
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()[1:]]
    return [int(pid) for pid, parent, line in rows if int(parent) in ranks and "wandb" in line]


def test_a_killed_wandb_process_leaves_the_run_complete(tmp_path):
    process = started(tmp_path, "repeats=100", "references=false", "seq_len=256")
    assert happened(lambda: wandb_processes(tmp_path), 5)
    for pid in wandb_processes(tmp_path):
        os.kill(pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 0, stderr
    (run_dir,) = run_dirs(tmp_path)
    results = json.loads((run_dir / "results.json").read_text())
    assert results["status"] == "complete"
    assert len(results["latency_ms_iterations"]) == 100


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
    read = subprocess.run(["wandb", "leet", "inspect", "--json", str(record)], capture_output=True, text=True)
    entries = [json.loads(line) for line in read.stdout.splitlines() if line.startswith("{")]
    logged = {int(entry["history"]["item"]["iteration"]) for entry in entries if entry["type"] == "history"}
    assert before - logged == set()
