"""Runs to be disturbed, most of them without end; and what is left of them afterwards."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.command import command, ranks_alive

ENDLESS = ("repeats=100000", "references=false", "seq_len=512")
FINITE = ("repeats=100", "references=false", "seq_len=256")
"""Ends by itself, some seconds after it is disturbed."""


def started(
    root: Path, *overrides: str, run: str = "*", env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A launcher whose run measures: of a sweep, the run whose folder matches `run`."""
    process = subprocess.Popen(
        command(*overrides, root=root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "160"} | (env or {}),
    )

    def measures() -> bool:
        files = [*root.glob(f"runs/*/{run}/iterations.csv"), *root.glob(f"sweeps/*/*/{run}/iterations.csv")]
        return process.poll() is not None or any(file.read_text().count("\n") > 4 for file in files)

    if not happened(measures, 90) or process.poll() is not None:
        process.kill()
        raise AssertionError(process.communicate()[1])
    return process


def happened(what: Callable[[], object], seconds: float) -> bool:
    """Tell whether `what` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(what())


def rank_pids(root: Path) -> list[int]:
    """Process ids of the ranks that run for `root`, in rank order."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode()
            environment = (entry / "environ").read_bytes().decode(errors="ignore")
        except OSError:
            continue
        if "ringexp.worker.rank\0" in line and str(root) in line:
            rank = next(v[5:] for v in environment.split("\0") if v.startswith("RANK="))
            found[int(rank)] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def wandb_processes(root: Path) -> list[int]:
    """The wandb processes of the ranks that run for `root`."""
    ranks = rank_pids(root)
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()[1:]]
    return [int(pid) for pid, parent, line in rows if int(parent) in ranks and "wandb" in line]


def gone(root: Path, seconds: float) -> bool:
    """Tell whether all ranks of `root` end within `seconds`."""
    return happened(lambda: not ranks_alive(root), seconds)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """A file system of that size in `folder`, made if needed; False where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Take all space that is left there."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"0" * 4096) == 4096:
            pass
