"""What this machine has, found without importing torch or creating a CUDA context."""

from __future__ import annotations

import os
from pathlib import Path


def gpu_count() -> int:
    """CUDA devices a process started here would see, from the device nodes and CUDA_VISIBLE_DEVICES."""
    present = sum(1 for node in Path("/dev").glob("nvidia[0-9]*") if node.name[6:].isdigit())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")]))


def default_device() -> str:
    """`cuda` where a CUDA device is visible, else `cpu`."""
    return "cuda" if gpu_count() else "cpu"


def cpu_name() -> str:
    """The processor's model name, or the architecture where the kernel does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
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
