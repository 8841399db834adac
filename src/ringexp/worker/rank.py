"""A rank process: `python -m ringexp.worker.rank RANK_SET.json`, with its place in the environment.

RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: as torch knows them. RINGEXP_CPU_THREADS: how many it
computes with on a CPU. RINGEXP_LAUNCHER_PID: the process it dies with. RINGEXP_SECRET: what only the ranks of
this run know. It joins the others, applies its throttle, does its jobs. Asked to end (SIGTERM, or SIGUSR2
before a time limit) it keeps what was measured.
"""

from __future__ import annotations

import ctypes
import hmac
import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType

from ringexp.atomic import PRIVATE, write_atomically
from ringexp.errors import Interrupted

PR_SET_PDEATHSIG = 1
SECRET_ENV = "RINGEXP_SECRET"

ASKED_TO_END = {
    signal.SIGTERM: "asked to end (SIGTERM)",
    signal.SIGUSR2: "the time limit is near (SIGUSR2)",
}


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the launcher `parent` ends, however it ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def error_file(rank_set: Path, rank: int) -> Path:
    """Where a rank leaves the exception that ended it: its time (s), type and message."""
    return rank_set.with_suffix(f".error_{rank}.json")


def write_error(rank_set: Path, rank: int, kind: str, message: str, time_s: float) -> None:
    """Leave a rank's error file, unless it has one: its first error counts. Nothing if the disk is full."""
    if not (path := error_file(rank_set, rank)).exists():
        document = {"time": time_s, "type": kind, "message": " ".join(message.split())}
        with suppress(OSError):
            write_atomically(path, json.dumps(document), PRIVATE)


def main() -> None:
    if parent := os.environ.get("RINGEXP_LAUNCHER_PID"):
        die_with_parent(int(parent))
    for signum in ASKED_TO_END:
        signal.signal(signum, _interrupt)
    try:
        _main()
    except BaseException as error:
        # The earliest of all ranks' errors is the cause, the others are its victims.
        time_s = error.time_s if isinstance(error, Interrupted) else time.time()
        with suppress(OSError):
            traceback.print_exc()
        write_error(Path(sys.argv[1]), int(os.environ["RANK"]), type(error).__name__, str(error), time_s)
        with suppress(OSError):
            sys.stderr.flush()
        # A full disk keeps no error file, but the exit code tells. A thread may wait for peers that are gone.
        os._exit((error.errno or 1) if isinstance(error, OSError) else 1)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    for each in ASKED_TO_END:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(ASKED_TO_END[signal.Signals(signum)])


def _main() -> None:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from ringexp.hetero.throttle import rank_throttle
    from ringexp.machine import hardware_queues
    from ringexp.ring.messages import Messages
    from ringexp.ring.transport import make_transport
    from ringexp.worker.communicator import Communicator
    from ringexp.worker.job import run_job
    from ringexp.worker.progress import ProgressWriter
    from ringexp.worker.rank_set import RankSet
    from ringexp.worker.session import open_session

    path = Path(sys.argv[1])
    ranks = RankSet.from_json(path.read_text(encoding="utf-8"))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if ranks.device == "cuda":
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", str(hardware_queues(ranks.ranks_per_device)))
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(int(os.environ["RINGEXP_CPU_THREADS"]))
    timeout = timedelta(seconds=ranks.jobs[0].config.launch.timeout_s)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    name, key = _keys(os.environ.pop(SECRET_ENV))  # a compiler that the rank starts has no use for it
    store = dist.PrefixStore(name, dist.TCPStore(address, port, is_master=False, timeout=timeout))
    # Weights and inputs are handed out over it; NCCL takes one rank a GPU.
    separate = ranks.transport in ("nccl", "ipc") and ranks.ranks_per_device == 1
    backend = "cpu:gloo,cuda:nccl" if separate else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world_size, timeout=timeout
    )
    control = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(control, dist.ProcessGroup)
    Messages(key=key, channel="start").all_gather(rank)  # raises for a rank that does not have the secret
    progress = ProgressWriter(path.with_suffix(".progress") if rank == 0 else None)
    communicator = Communicator(rank, control, dist.PrefixStore("session", store), key)
    with rank_throttle(ranks.throttle, ranks.percentages[rank], device) as throttle:
        transport = make_transport(ranks.transport, device, key=key)
        session = open_session(ranks, device, communicator, transport, throttle, progress)
        session.warn_of_limited_cublas()
        for index, job in enumerate(ranks.jobs):
            progress.job(index)
            if not run_job(session, job):
                break
    session.close()


def _keys(secret: str) -> tuple[str, bytes]:
    """Return the name of a run's part of the store, and the key of its messages.

    The store tells its names to whoever asks, so they must not give away the secret or the key.
    """
    name, key = (hmac.digest(secret.encode(), use, "sha256") for use in (b"store", b"messages"))
    return name.hex(), key


if __name__ == "__main__":
    main()
