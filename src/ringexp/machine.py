"""Describe this machine, without importing torch or creating a CUDA context."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """One CUDA device, or one MIG part of a device, with the driver's names."""

    uuid: str
    name: str


def gpu_count() -> int:
    """Return the number of CUDA devices that a new process would see."""
    present = sum(1 for node in Path("/dev").glob("nvidia[0-9]*") if node.name[6:].isdigit())
    entries = visible_entries()
    if entries is None:
        return present
    if all(isinstance(entry, int) for entry in entries):
        return len(list(takewhile(lambda entry: int(entry) < present, entries)))
    return len(visible_gpus()) if _nvidia_smi() else len(entries)


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that a process started here would see, in the order in which CUDA counts them.

    This assumes that indices are those of nvidia-smi, as they are with CUDA_DEVICE_ORDER=PCI_BUS_ID or with
    GPUs of one kind. By default CUDA puts the fastest GPU first, so a record of a machine should include that
    setting. Without nvidia-smi the list is empty.
    """
    installed = _installed_gpus(_nvidia_smi())
    entries = visible_entries()
    if entries is None:
        return installed
    seen = []
    for entry in entries:
        if isinstance(entry, int):
            matching = installed[entry : entry + 1]
        else:
            candidates = mig_parts() if entry.startswith("MIG-") else installed
            matching = [gpu for gpu in candidates if gpu.uuid.startswith(entry)]
        if len(matching) != 1:  # CUDA ignores all entries after an unknown one
            break
        seen += matching
    return [] if len(set(seen)) < len(seen) else seen


def visible_entries() -> list[int | str] | None:
    """Read CUDA_VISIBLE_DEVICES as CUDA does.

    Returns:
        Indices, or UUIDs or beginnings of UUIDs; None if the variable is not set. An invalid entry, such as
        -1, ends the list. If an entry is repeated the list is empty.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    words = [word.strip() for word in visible.split(",")]
    kind = next((kind for kind in ("GPU-", "MIG-") if words[0].startswith(kind)), None)
    entries: list[int | str] = []
    for word in words:
        if kind:
            entry = word if word.startswith(kind) else None
        else:  # CUDA ignores characters after the digits of an index
            number = re.match(r"\+?\d+", word)
            entry = int(number[0]) if number else None
        if entry is None:
            break
        entries.append(entry)
    return [] if len(set(entries)) < len(entries) else entries


def mig_parts() -> list[Gpu]:
    """Return the MIG parts of all GPUs of this machine. Each part is named after its GPU and its size."""
    return _mig_parts(_nvidia_smi())


def _nvidia_smi() -> str | None:
    """Return the path of nvidia-smi; None if there is none."""
    return shutil.which("nvidia-smi")


@functools.cache
def _installed_gpus(program: str | None) -> list[Gpu]:
    command = "--query-gpu=index,uuid,name", "--format=csv,noheader"
    output = _output([program, *command]) if program else None
    rows = [[cell.strip() for cell in line.split(",", 2)] for line in (output or "").splitlines()]
    rows = sorted((row for row in rows if len(row) == 3 and row[0].isdigit()), key=lambda row: int(row[0]))
    return [Gpu(uuid=uuid, name=name) for _, uuid, name in rows]


@functools.cache
def _mig_parts(program: str | None) -> list[Gpu]:
    output = _output([program, "-L"]) if program else None
    parts, gpu = [], ""
    for line in (output or "").splitlines():
        if match := re.match(r"GPU \d+: (.+) \(UUID:", line):
            gpu = match[1]
        elif match := re.match(r"\s+(MIG \S+)\s+Device\s+\d+: \(UUID: (\S+)\)", line):
            parts.append(Gpu(uuid=match[2], name=f"{gpu} {match[1]}"))
    return parts


def nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver; None if nvidia-smi does not report it."""
    return _driver(_nvidia_smi())


@functools.cache
def _driver(program: str | None) -> str | None:
    output = _output([program, "--query-gpu=driver_version", "--format=csv,noheader"]) if program else None
    return output.splitlines()[0].strip() if output else None


def _output(command: list[str]) -> str | None:
    """Run a command and return its output; None if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@functools.cache
def gpus_reach_each_other() -> bool:
    """Return whether every GPU of this machine can write directly into every other GPU's memory.

    The answer is False if nvidia-smi does not report it.
    """
    return all_ok(_output(["nvidia-smi", "topo", "-p2p", "w"]) or "")


def all_ok(matrix: str) -> bool:
    """Return whether the output of `nvidia-smi topo -p2p` has OK for every pair of GPUs."""
    rows = [line.split() for line in re.sub(r"\x1b\[\d*m", "", matrix).splitlines()]
    of_gpus = [cells for name, *cells in filter(None, rows) if re.fullmatch(r"GPU\d+", name)]
    pairs = [cell for cells in of_gpus for cell in cells if not re.fullmatch(r"X|GPU\d+", cell)]
    return bool(of_gpus) and all(cell == "OK" for cell in pairs)


def default_device() -> str:
    """Return `cuda` if a CUDA device is visible, else `cpu`."""
    return "cuda" if gpu_count() else "cpu"


def cpu_name() -> str:
    """Return the processor's model name, or its architecture if Linux does not report the name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return os.uname().machine


def cpu_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int | None:
    """Return the memory that processes here may use together, swap included; None if it is not known.

    It is the smaller of the machine's memory and the limit of its control groups.
    """
    sizes = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8", errors="replace").splitlines()
        kib = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines)}
        sizes.append(1024 * (int(kib["MemTotal"]) + int(kib["SwapTotal"])))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            sizes.append(int(Path(limit).read_text(encoding="utf-8")))
    return min(sizes, default=None)


@functools.cache
def gpu_memory_bytes() -> int | None:
    """Return the memory of the largest GPU here; None if nvidia-smi does not report it."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=True
        ).stdout
        return max(2**20 * int(line) for line in output.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def cores_per_rank(world_size: int) -> int:
    """Return the number of cores, and threads, per rank on this machine."""
    return max(1, cpu_cores() // world_size)


def hardware_queues(ranks_per_gpu: int) -> int:
    """Return the number of hardware queues per rank (CUDA_DEVICE_MAX_CONNECTIONS; set it before CUDA starts).

    With CUDA's default of 8, a copy and a concurrent kernel sometimes share a queue. Under MPS a GPU has
    about 100 queues for all processes; a process that gets none runs out of memory at its start.
    """
    return min(32, max(64 // ranks_per_gpu, 1))
