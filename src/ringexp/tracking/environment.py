"""The circumstances of a run: machine, versions, code and command."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ringexp.machine import cpu_cores, cpu_name, mig_parts, nvidia_driver, visible_gpus
from ringexp.stored import JsonObject

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package, installed or in a source tree."""

CODE = (".py", ".js", ".html", ".css", ".yaml")
"""The ends of the names of the files that decide what ringexp does."""

PACKAGES = ("ringexp", "torch", "triton", "ibm-fms", "transformers", "hydra-core", "omegaconf")
PACKAGES += ("wandb", "submitit")


def machine_facts(device_type: str) -> JsonObject:
    """Return the facts that decide speed on this machine, without creating a CUDA context.

    The GPUs are those that CUDA_VISIBLE_DEVICES leaves, in order, by name and UUID.
    """
    facts: JsonObject = {"device": device_type, "host": platform.node()}
    facts |= {name: version_of(name) for name in ("torch", "triton", "ibm-fms")}
    if device_type != "cuda":
        return facts | {"cpu": cpu_name(), "cores": cpu_cores()}
    gpus = visible_gpus()
    facts |= {"gpus": [gpu.name for gpu in gpus], "gpu_uuids": [gpu.uuid for gpu in gpus]}
    facts |= {"gpu_order": os.environ.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST"), "driver": nvidia_driver()}
    if parts := mig_parts():
        facts["mig_uuids"] = [part.uuid for part in parts]
    if not gpus:  # nvidia-smi did not tell them apart
        facts["visible_devices"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    return facts


def gpu_names() -> list[str]:
    """Return the names of the GPUs that this process can see."""
    return [gpu.name for gpu in visible_gpus()]


def environment(machine: JsonObject, command: Sequence[str]) -> JsonObject:
    """Return versions, hardware, driver, commit, command and time of a run.

    Args:
        machine: `machine_facts` of the machine that the ranks run on.
        command: how the launcher was called.
    """
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "machine": machine,
        "cpu": cpu_name(),
        "commit": git_commit(),
        "code": code_identity(),
        "command": [*command],
    }


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of ringexp's own source tree, with `+dirty` if it has local changes.

    Return None if ringexp is installed, even inside of somebody's repository. Return None also where git does
    not tell, as for a tree that another user owns.
    """
    source = _source_tree()
    if source is None or not (source / ".git").exists():
        return None
    commit = _git(source, "rev-parse", "--short=12", "HEAD")
    changes = _git(source, "status", "--porcelain")
    if not commit or changes is None:
        return None
    return commit + ("+dirty" if changes else "")


def _source_tree() -> Path | None:
    """Return the root of the source tree that ringexp runs from; None if ringexp was installed."""
    root = PACKAGE.parents[1]
    try:
        project = (root / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    ours = PACKAGE.parent.name == "src" and re.search(r'^name\s*=\s*"ringexp"', project, re.MULTILINE)
    return root if ours else None


def _git(source: Path, *arguments: str) -> str | None:
    """Return git's answer about the repository with the root `source`, whatever repository the caller is in.

    git finds that repository by itself, because then it refuses a repository that another user owns.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ["GIT_CEILING_DIRECTORIES"] = str(source.parent)
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=source,
            env=environ,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def code_identity() -> str:
    """Return 16 hex digits that are equal for equal code of ringexp, wherever it lies.

    They are a hash over the package's own files, so a repository around an installed package does not count,
    nor does what is in conf/: the settings that a run was composed of are known by themselves.
    """
    whole = hashlib.sha256()
    for path in code_files():
        whole.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


def code_files() -> list[Path]:
    """List the files of ringexp's package, except conf/."""
    files = (path for path in PACKAGE.rglob("*") if path.suffix in CODE and path.is_file())
    return sorted(path for path in files if path.relative_to(PACKAGE).parts[0] != "conf")


def command_line() -> list[str]:
    """Return the command that called the launcher."""
    program = "python -m ringexp" if os.path.basename(sys.argv[0]) == "__main__.py" else sys.argv[0]
    return [program, *sys.argv[1:]]
