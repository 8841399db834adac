"""What this machine has, found without importing torch or creating a CUDA context."""

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
    """One CUDA device, or one MIG part of a device, as the driver names it."""

    uuid: str
    name: str


def gpu_count() -> int:
    """CUDA devices a process started here would see, from the device nodes and CUDA_VISIBLE_DEVICES."""
    present = sum(1 for node in Path("/dev").glob("nvidia[0-9]*") if node.name[6:].isdigit())
    entries = visible_entries()
    if entries is None:
        return present
    if all(isinstance(entry, int) for entry in entries):
        return len(list(takewhile(lambda entry: int(entry) < present, entries)))
    return len(visible_gpus()) if _nvidia_smi() else len(entries)


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that a process started here would see, in the order in which CUDA counts them.

    Indices are taken to be those of nvidia-smi. CUDA counts so with CUDA_DEVICE_ORDER=PCI_BUS_ID, or where
    all GPUs are alike; by default it puts the fastest first, so whoever tells machines apart has to note that
    setting too. Empty without nvidia-smi.
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
            known = mig_parts() if entry.startswith("MIG-") else installed
            matching = [gpu for gpu in known if gpu.uuid.startswith(entry)]
        if len(matching) != 1:  # CUDA ignores what follows an entry that it does not know
            break
        seen += matching
    return [] if len(set(seen)) < len(seen) else seen


def visible_entries() -> list[int | str] | None:
    """Read CUDA_VISIBLE_DEVICES as CUDA does: indices, or UUIDs or their beginnings; None if it is not set.

    An entry that is neither ends the list, so -1 stands for none. An entry that comes twice empties it.
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
        else:  # CUDA reads an index as C does: what follows the digits is ignored
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
    told = _output([program, "--query-gpu=index,uuid,name", "--format=csv,noheader"]) if program else None
    rows = [[cell.strip() for cell in line.split(",", 2)] for line in (told or "").splitlines()]
    rows = sorted((row for row in rows if len(row) == 3 and row[0].isdigit()), key=lambda row: int(row[0]))
    return [Gpu(uuid=uuid, name=name) for _, uuid, name in rows]


@functools.cache
def _mig_parts(program: str | None) -> list[Gpu]:
    told = _output([program, "-L"]) if program else None
    parts, gpu = [], ""
    for line in (told or "").splitlines():
        if found := re.match(r"GPU \d+: (.+) \(UUID:", line):
            gpu = found[1]
        elif found := re.match(r"\s+(MIG \S+)\s+Device\s+\d+: \(UUID: (\S+)\)", line):
            parts.append(Gpu(uuid=found[2], name=f"{gpu} {found[1]}"))
    return parts


def nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver; None where nvidia-smi does not tell."""
    return _driver(_nvidia_smi())


@functools.cache
def _driver(program: str | None) -> str | None:
    told = _output([program, "--query-gpu=driver_version", "--format=csv,noheader"]) if program else None
    return told.splitlines()[0].strip() if told else None


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@functools.cache
def gpus_reach_each_other() -> bool:
    """Tell whether every GPU of this machine can write directly into every other GPU's memory.

    Return False where this cannot be found out.
    """
    return all_ok(_output(["nvidia-smi", "topo", "-p2p", "w"]) or "")


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


def memory_bytes() -> int | None:
    """Return the memory that processes here may use together, swap included; None where nobody tells.

    The least of what the machine has and what its control groups allow.
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
    """Return the memory of the largest GPU here; None where nobody tells."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=True
        ).stdout
        return max(2**20 * int(line) for line in told.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def cores_per_rank(world_size: int) -> int:
    """Cores, and threads, of each of the ranks that share this machine's processor."""
    return max(1, cpu_cores() // world_size)


def hardware_queues(ranks_per_gpu: int) -> int:
    """How many a rank is to have, as CUDA_DEVICE_MAX_CONNECTIONS before CUDA starts.

    Of CUDA's usual 8, a copy and the computing beside it now and then got the same one. Under MPS a GPU has
    about 100 for all processes; one that gets none runs out of memory as it starts.
    """
    return min(32, max(64 // ranks_per_gpu, 1))
