"""What this machine has, found without importing torch or creating a CUDA context."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path


def gpu_count() -> int:
    """CUDA devices a process started here would see, from the device nodes and CUDA_VISIBLE_DEVICES."""
    present = sum(1 for node in Path("/dev").glob("nvidia[0-9]*") if node.name[6:].isdigit())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")]))


@functools.cache
def gpus_reach_each_other() -> bool:
    """Whether every GPU here can write into every other's memory by itself; False where nobody can tell."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "topo", "-p2p", "w"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return all_ok(told)


def all_ok(matrix: str) -> bool:
    """Whether `nvidia-smi topo -p2p` says OK of every pair of GPUs."""
    rows = [line.split() for line in re.sub(r"\x1b\[\d*m", "", matrix).splitlines()]
    of_gpus = [cells for name, *cells in filter(None, rows) if re.fullmatch(r"GPU\d+", name)]
    pairs = [cell for cells in of_gpus for cell in cells if not re.fullmatch(r"X|GPU\d+", cell)]
    return bool(of_gpus) and all(cell == "OK" for cell in pairs)


def default_device() -> str:
    """`cuda` where a CUDA device is visible, else `cpu`."""
    return "cuda" if gpu_count() else "cpu"


def cpu_name() -> str:
    """The processor's model name, or the architecture where the kernel does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return os.uname().machine


def cpu_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def cores_a_rank(world_size: int) -> int:
    """Cores, and threads, of each of the ranks that share this machine's processor."""
    return max(1, cpu_cores() // world_size)


def hardware_queues(ranks_per_gpu: int) -> int:
    """How many a rank is to have, as CUDA_DEVICE_MAX_CONNECTIONS before CUDA starts.

    Of CUDA's usual 8, a copy and the computing beside it now and then got the same one. Under MPS a GPU has
    about 100 for all processes; one that gets none runs out of memory as it starts.
    """
    return min(32, max(64 // ranks_per_gpu, 1))
