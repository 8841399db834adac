"""Where and with what a run was made."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ringexp.machine import cpu_cores, cpu_name

PACKAGES = ("ringexp", "torch", "triton", "ibm-fms", "hydra-core", "omegaconf", "wandb", "submitit")


def machine_facts(device_type: str) -> dict[str, Any]:
    """What decides speed on this machine; found without creating a CUDA context."""
    facts: dict[str, Any] = {"device": device_type, "torch": _version("torch")}
    if device_type == "cuda":
        return facts | {"gpus": gpu_names(), "driver": nvidia_driver()}
    return facts | {"cpu": cpu_name(), "cores": cpu_cores()}


def environment(device_type: str, command: list[str]) -> dict[str, Any]:
    """Versions, hardware, driver, commit, command and time of a run."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": machine_facts(device_type),
        "cpu": cpu_name(),
        "commit": git_commit(),
        "command": command,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(command: list[str], cwd: Path | None = None) -> str | None:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def gpu_names() -> list[str]:
    names = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return names.splitlines() if names else []


@functools.cache
def nvidia_driver() -> str | None:
    found = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return found.splitlines()[0] if found else None


def git_commit() -> str | None:
    """Commit of the source tree ringexp runs from, `+dirty` with local changes; None if installed."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return None
    commit = _output(["git", "rev-parse", "--short=12", "HEAD"], source)
    if commit is None:
        return None
    return commit + ("+dirty" if _output(["git", "status", "--porcelain"], source) else "")


@functools.cache
def code_identity() -> str:
    """ringexp's version, commit and local changes: equal for equal code."""
    changes = _output(["git", "diff", "HEAD"], Path(__file__).parent) or ""
    return f"{_version('ringexp')} {git_commit()} {hashlib.sha256(changes.encode()).hexdigest()[:12]}"


def command_line() -> list[str]:
    """How the launcher was called."""
    program = "python -m ringexp" if os.path.basename(sys.argv[0]) == "__main__.py" else sys.argv[0]
    return [program, *sys.argv[1:]]
