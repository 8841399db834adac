"""One task of a SLURM step: `python -m ringexp.slurm.task RANK_SET.json`, started by srun.

It turns its place in the step into a rank's environment and watches over the rank, which is its child. The
first task of each node keeps the node's side of the throttle (an MPS daemon) for as long as its rank lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from ringexp.atomic import PRIVATE, write_atomically
from ringexp.choices import THROTTLES
from ringexp.errors import Interrupted, RunFailed, UserError
from ringexp.hetero.throttle import host_throttle
from ringexp.launch.supervision import GRACE_S, POLL_S, StopWatch, killed, stopped_too_long
from ringexp.machine import cores_per_rank, gpu_count
from ringexp.worker.rank import ASKED_TO_END
from ringexp.worker.rank_error import write_error
from ringexp.worker.rank_place import RankPlace
from ringexp.worker.rank_set import RankSet

THROTTLE_S = 60.0
"""Seconds for the first task of a node to have the throttle ready."""


def main() -> None:
    """Run one task of a job step: start the rank of SLURM_PROCID under its throttle."""
    path, rank = Path(sys.argv[1]), int(os.environ["SLURM_PROCID"])
    ranks = RankSet.from_json(path.read_text(encoding="utf-8"))
    try:
        with node_throttle(ranks, path.parent) as environments:
            code = _watch(path, rank, _environment(ranks, rank) | environments[rank])
    except (UserError, RunFailed) as error:
        write_error(path, rank, type(error).__name__, str(error), time.time())
        code = 1
    sys.exit(code)


def _environment(ranks: RankSet, rank: int) -> dict[str, str]:
    """Return the environment of this task's rank, without the variables that `rendezvous` has set already."""
    local_rank = int(os.environ["SLURM_LOCALID"])
    # An address: names of nodes need not resolve.
    master = os.environ.get("MASTER_ADDR") or os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    place = RankPlace(
        rank=rank,
        world_size=ranks.world_size,
        local_rank=local_rank % gpu_count() if ranks.device == "cuda" else local_rank,
        cpu_threads=int(os.environ.get("SLURM_CPUS_PER_TASK", cores_per_rank(_tasks_here()))),
        launcher_pid=os.getpid(),
    )
    environment = place.to_environment() | {"MASTER_ADDR": master}
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_towards(master)):
        environment["GLOO_SOCKET_IFNAME"] = interface
    return environment


def _tasks_here() -> int:
    """Return the number of this step's tasks on this node, by SLURM's list of counts, such as `2(x3),1`."""
    counts: list[int] = []
    for entry in os.environ["SLURM_STEP_TASKS_PER_NODE"].split(","):
        count, _, times = entry.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts[int(os.environ["SLURM_NODEID"])]


def interface_towards(address: str) -> str | None:
    """Return the network interface towards `address`; None if it cannot be found out (Linux, IPv4)."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        local_address = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                request = struct.pack("256s", name.encode())
                siocgifaddr = 0x8915
                if fcntl.ioctl(probe.fileno(), siocgifaddr, request)[20:24] == local_address:
                    return name
    return None


@contextmanager
def node_throttle(ranks: RankSet, workdir: Path) -> Iterator[list[dict[str, str]]]:
    """Run the launcher's side of the throttle, once per node. Yield the variables of each rank."""
    if not THROTTLES[ranks.throttle].shared_on_node:
        with host_throttle(ranks.throttle, ranks.percentages, workdir, ranks.drifting) as environments:
            yield environments
        return
    announced = workdir / f"throttle_node_{os.environ['SLURM_NODEID']}.json"
    if os.environ["SLURM_LOCALID"] == "0":
        with host_throttle(ranks.throttle, ranks.percentages, workdir, ranks.drifting) as environments:
            write_atomically(announced, json.dumps(environments), PRIVATE)
            yield environments
        return
    deadline = time.monotonic() + THROTTLE_S
    while not announced.exists():
        if time.monotonic() > deadline:
            raise RunFailed(f"the first task of {socket.gethostname()} started no {ranks.throttle} daemon")
        time.sleep(POLL_S)
    yield json.loads(announced.read_text(encoding="utf-8"))


def _watch(path: Path, rank: int, environment: dict[str, str]) -> int:
    """Run the rank to its end and return its exit code.

    Signals are passed on to the rank, which gets GRACE_S to end.
    """
    log = path.parent / "logs" / f"rank_{rank}.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "ringexp.worker.rank", str(path)], env=os.environ | environment
    )
    deadline: float | None = None
    killed_for: tuple[str, str] | None = None  # kind of error and message

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal deadline
        deadline = time.monotonic() + GRACE_S
        process.send_signal(signum)

    for signum in ASKED_TO_END:
        signal.signal(signum, pass_on)
    watch = StopWatch()
    while (code := process.poll()) is None:
        if watch.overdue([process.pid]):
            killed_for = (RunFailed.__name__, stopped_too_long(rank, process.pid))
        elif deadline and time.monotonic() > deadline:
            killed_for = (Interrupted.__name__, "asked to end")
        if killed_for:
            process.kill()
        time.sleep(POLL_S)
    if code < 0:
        by_another = (RunFailed.__name__, killed(rank, -code, process.pid, log))
        write_error(path, rank, *(killed_for or by_another), time.time())
    return code if code >= 0 else 1


if __name__ == "__main__":
    main()
