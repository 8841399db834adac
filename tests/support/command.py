"""Running `python -m ringexp` as a user does, with everything it writes in a folder of the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

QUICK = ("warmup=1", "repeats=3", "calibration.min_seconds=0.02", "calibration.min_samples=2")
QUICK += ("calibration.max_seconds=0.02",)
QUICK += ("calibration.spot_check=false",)  # with two samples, any point may be off


def ringexp(
    *overrides: str,
    root: Path | str,
    env: dict[str, str] | None = None,
    timeout: float = 240,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*overrides, root=root),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "160"} | (env or {}),
    )


def command(*overrides: str, root: Path | str) -> list[str]:
    return [sys.executable, "-m", "ringexp", *overrides, f"output_root={root}"]


def run_dirs(root: Path) -> list[Path]:
    return sorted((root / "runs").glob("*/*"))


def ranks_alive(root: Path) -> list[str]:
    """Command lines of rank processes that belong to `root`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "ringexp.worker.rank" in line and str(root) in line:
            found.append(line)
    return found
