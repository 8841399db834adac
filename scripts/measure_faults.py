#!/usr/bin/env python3
"""Disturb runs in every way that docs/reliability.md lists, on this machine, and print the page's table.

    python scripts/measure_faults.py [NAME ...]

Seconds are from the fault to the launcher's end. If the launcher itself was killed they are to the last
rank's end; faults of wandb end no run, so they are to the end of the run. After each fault the script checks
that no rank, temporary file, half line or MPS daemon is left. Faults that need root, a GPU or SLURM
(scripts/slurm_dev_cluster.sh) are left out if there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SOURCE / "tests"))

from support.command import ranks_alive, ringexp  # noqa: E402
from support.faults import (  # noqa: E402
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

Fault = Callable[[Path], tuple[subprocess.Popen, float]]
"""A function that starts a run in a folder and disturbs it. It returns the launcher and the fault's time."""

GPU = Path("/dev/nvidia0").exists()
ONE_GPU = GPU and not Path("/dev/nvidia1").exists()
PROFILE = "hetero.percentages=[66,33]" if ONE_GPU else "hetero=mps_50_100"
QUIET = (*ENDLESS, "tracker=disabled", PROFILE, "calibration.min_seconds=0.05")
HAS_SLURM = shutil.which("sinfo") is not None and "SLURM_CONF" in os.environ
SLURM = ("-m", "hydra/launcher=slurm", "hydra.launcher.nodes=2")


def to_rank_one(signum: int, *overrides: str) -> Fault:
    def fault(root: Path) -> tuple[subprocess.Popen, float]:
        process = started(root, *overrides, *QUIET)
        os.kill(rank_pids(root)[1], signum)
        return process, time.monotonic()

    return fault


def to_task_of_rank_one(*overrides: str) -> Fault:
    """Kill the task of a SLURM step that supervises rank 1, so that the rank ends too."""

    def fault(root: Path) -> tuple[subprocess.Popen, float]:
        process = started(root, *overrides, *QUIET)
        status = Path(f"/proc/{rank_pids(root)[1]}/stat").read_text(encoding="utf-8")
        os.kill(int(status.rpartition(")")[2].split()[1]), signal.SIGKILL)
        return process, time.monotonic()

    return fault


def to_launcher(signum: int, *overrides: str) -> Fault:
    def fault(root: Path) -> tuple[subprocess.Popen, float]:
        process = started(root, *overrides, *QUIET)
        process.send_signal(signum)
        return process, time.monotonic()

    return fault


def out_of_memory(root: Path) -> tuple[subprocess.Popen, float]:
    """Forbid rank 1 to allocate more memory, so that its next allocation fails."""
    process = started(root, *QUIET)
    resource.prlimit(rank_pids(root)[1], resource.RLIMIT_AS, (1, 1))
    return process, time.monotonic()


def full_disk(root: Path) -> tuple[subprocess.Popen, float]:
    process = started(root, *QUIET)
    fill(root)
    return process, time.monotonic()


def wandb_disk_full(root: Path) -> tuple[subprocess.Popen, float]:
    run_dir = root / "runs" / "today" / "run"
    process = started(root, *FINITE, PROFILE, f"hydra.run.dir={run_dir}")
    fill(run_dir / "wandb")
    return process, time.monotonic()


def wandb_killed(root: Path) -> tuple[subprocess.Popen, float]:
    process = started(root, *FINITE, PROFILE)
    happened(lambda: wandb_processes(root), 5)
    for pid in wandb_processes(root):
        os.kill(pid, signal.SIGKILL)
    return process, time.monotonic()


def mps_daemon_killed(root: Path) -> tuple[subprocess.Popen, float]:
    process = started(root, "hetero.throttle=mps", *QUIET)
    for pid in mps_processes(root):
        os.kill(pid, signal.SIGKILL)
    return process, time.monotonic()


def mps_processes(root: Path) -> list[int]:
    """Return the process ids of MPS daemons and servers whose log folder is under `root`."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"CUDA_MPS_LOG_DIRECTORY={root}".encode() in (folder / "environ").read_bytes()
            if ours and (folder / "comm").read_text(encoding="utf-8", errors="replace").startswith(
                "nvidia-cuda-mps"
            ):
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids


def scancel(*arguments: str) -> Fault:
    def fault(root: Path) -> tuple[subprocess.Popen, float]:
        process = started(root, *SLURM, *QUIET)
        listed = subprocess.run(
            ["squeue", "-h", "-o", "%i %Z %o"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        )
        jobs = [line.split()[0] for line in listed.stdout.splitlines() if str(root) in line]
        began = time.monotonic()
        subprocess.run(["scancel", *arguments, *jobs], check=True)
        return process, began

    return fault


FAULTS: dict[str, tuple[str, Fault, bool]] = {
    "killed": ("a rank is killed (SIGKILL) in a hop", to_rank_one(signal.SIGKILL), True),
    "stopped": ("a rank is stopped (SIGSTOP) in a hop", to_rank_one(signal.SIGSTOP), True),
    "memory": ("a rank raises: out of memory", out_of_memory, True),
    "ctrl_c": ("Ctrl-C", to_launcher(signal.SIGINT), True),
    "terminated": ("the launcher is terminated (SIGTERM)", to_launcher(signal.SIGTERM), True),
    "launcher": ("the launcher is killed (SIGKILL)", to_launcher(signal.SIGKILL), True),
    "sweep": ("Ctrl-C in a sweep", to_launcher(signal.SIGINT, "-m", "partitioner=even,uneven"), True),
    "disk": ("the disk is full", full_disk, os.geteuid() == 0 and not GPU),
    "wandb": ("wandb's process is killed (SIGKILL)", wandb_killed, True),
    "wandb_disk": ("wandb's disk is full", wandb_disk_full, os.geteuid() == 0),
    "mps": ("the MPS daemon is killed", mps_daemon_killed, GPU),
    "scancel": ("SLURM: the job is cancelled", scancel(), HAS_SLURM),
    "limit": (
        "SLURM: the signal before the time limit",
        scancel("--signal=USR2"),
        HAS_SLURM,
    ),
    "slurm_killed": (
        "SLURM: a rank is killed (SIGKILL)",
        to_rank_one(signal.SIGKILL, *SLURM),
        HAS_SLURM,
    ),
    "slurm_task": (
        "SLURM: the task of a rank is killed (SIGKILL)",
        to_task_of_rank_one(*SLURM),
        HAS_SLURM,
    ),
    "slurm_launcher": (
        "SLURM: Ctrl-C in the submitting launcher",
        to_launcher(signal.SIGINT, *SLURM),
        HAS_SLURM,
    ),
}

SMALL_DISKS = {"disk": (".", "400k"), "wandb_disk": ("runs/today/run/wandb", "64k")}
"""The folder and the size of the file system that a fault needs."""


def leftovers(root: Path) -> list[str]:
    """Return what a run should not have left after its end."""
    left = ranks_alive(root) + [f"MPS process {pid}" for pid in mps_processes(root)]
    left += [str(path) for path in root.rglob(".*") if path.is_file() and ".json." in path.name]
    for path in root.rglob("iterations.csv"):
        if not path.read_bytes().endswith(b"\n"):
            left.append(f"half a line in {path}")
    for path in root.rglob("results.json"):
        json.loads(path.read_text(encoding="utf-8"))
    return left


def measure(name: str, root: Path) -> str:
    """Disturb one run and return its line of the table."""
    what, fault, _ = FAULTS[name]
    process, began = fault(root)
    stdout, stderr = process.communicate(timeout=120)
    launcher_s = time.monotonic() - began
    assert gone(root, 30), "ranks live on"
    seconds = launcher_s if process.returncode >= 0 else time.monotonic() - began
    happened(lambda: not mps_processes(root), 15)
    left = leftovers(root)
    lines = stderr.splitlines() or [line.strip() for line in stdout.splitlines() if " warning: " in line]
    message = lines[-1].replace(str(root), "…") if lines else "-"
    statuses = sorted(
        {json.loads(path.read_text(encoding="utf-8"))["status"] for path in root.rglob("results.json")}
    )
    shown = message if len(message) <= 130 else message[:130] + " …"
    done = ", done" if process.returncode == 0 else ""
    return (
        f"| {what} | {seconds:.1f}{done} | `{shown}` | {process.returncode} | {', '.join(statuses)} "
        f"| {'; '.join(left) or 'nothing'} |"
    )


def resumed() -> str:
    """Interrupt a sweep in its second run and give its command again. Return the second sweep's summary."""
    with tempfile.TemporaryDirectory(prefix="ringexp-faults-") as folder:
        root = Path(folder)
        sweep = ["-m", "partitioner=even,uneven,lut", "hetero=mps_50_100", "references=false", "seq_len=256"]
        sweep += ["repeats=40", "tracker=disabled", "calibration.min_seconds=0.05"]
        process = started(root, *sweep, run="1_*")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        again = ringexp(*sweep, root=root)
        return next(line for line in again.stdout.splitlines() if "runs complete" in line).split(";")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FAULTS))
    names = parser.parse_args().names or [name for name, (_, _, possible) in FAULTS.items() if possible]
    print("| fault | ends after s | message | exit code | results.json | left behind |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        with tempfile.TemporaryDirectory(prefix="ringexp-faults-") as folder:
            root = Path(folder)
            where, size = SMALL_DISKS.get(name, (".", None))
            with small_disk(root / where, size) if size else nullcontext():
                print(measure(name, root), flush=True)
    if "sweep" in names:
        print(f"\nThe interrupted sweep, its command given again: {resumed()}.")


if __name__ == "__main__":
    main()
