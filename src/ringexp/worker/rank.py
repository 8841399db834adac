"""A rank process: `python -m ringexp.worker.rank RANK_SET.json`, with its place in the environment.

The environment has what `RankPlace` describes, MASTER_ADDR and MASTER_PORT of the rendezvous store, and
RINGEXP_SECRET, which only the ranks of this run know. The process joins the other ranks, applies its throttle
and does the jobs of its set. When it is asked to end (SIGTERM, or SIGUSR2 before a time limit), it keeps what
was measured.
"""

from __future__ import annotations

import ctypes
import hmac
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.errors import Interrupted
from ringexp.interrupts import raise_on
from ringexp.worker.rank_error import write_error
from ringexp.worker.rank_place import SECRET_ENV, RankPlace
from ringexp.worker.rank_set import RankSet

if TYPE_CHECKING:
    import torch

    from ringexp.worker.communicator import Communicator

PR_SET_PDEATHSIG = 1

ASKED_TO_END = {
    signal.SIGTERM: "asked to end (SIGTERM)",
    signal.SIGUSR2: "the time limit is near (SIGUSR2)",
}


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the launcher `parent` ends, however it ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Run this rank to its end. If it fails, leave the error for the launcher."""
    place, rank_set = RankPlace.from_environment(), Path(sys.argv[1])
    if place.launcher_pid:
        die_with_parent(place.launcher_pid)
    raise_on(ASKED_TO_END, once=True)
    try:
        _run_jobs(place, rank_set)
    except BaseException as error:
        # The earliest of all ranks' errors is the cause, the others are its victims.
        time_s = error.time_s if isinstance(error, Interrupted) else time.time()
        with suppress(OSError):
            traceback.print_exc()
        write_error(rank_set, place.rank, type(error).__name__, str(error), time_s)
        with suppress(OSError):
            sys.stderr.flush()
        # A full disk keeps no error file, but the exit code tells. A thread may wait for peers that are gone.
        os._exit((error.errno or 1) if isinstance(error, OSError) else 1)


def _run_jobs(place: RankPlace, rank_set: Path) -> None:
    """Join the other ranks and do all jobs of the set."""
    from ringexp.hetero.throttle import rank_throttle
    from ringexp.ring.transport import make_transport
    from ringexp.worker.job import run_job
    from ringexp.worker.progress import ProgressWriter
    from ringexp.worker.session import open_session

    ranks = RankSet.from_json(rank_set.read_text(encoding="utf-8"))
    device = _device(ranks, place)
    store_name, key = _keys(os.environ.pop(SECRET_ENV))  # a compiler that the rank starts has no use for it
    communicator = _join(ranks, place, store_name, key)
    progress = ProgressWriter(rank_set.with_suffix(".progress") if place.rank == 0 else None)
    with rank_throttle(ranks.throttle, ranks.percentages[place.rank], device) as throttle:
        transport = make_transport(ranks.transport, device, key=key)
        session = open_session(ranks, device, communicator, transport, throttle, progress)
        session.warn_of_limited_cublas()
        for index, job in enumerate(ranks.jobs):
            progress.job(index)
            if not run_job(session, job):
                break
    session.close()


def _device(ranks: RankSet, place: RankPlace) -> torch.device:
    """Return this rank's device, made ready for use."""
    import torch

    from ringexp.machine import hardware_queues

    if ranks.device == "cuda":
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", str(hardware_queues(ranks.ranks_per_device)))
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
        return device
    torch.set_num_threads(place.cpu_threads)
    return torch.device("cpu")


def _join(ranks: RankSet, place: RankPlace, store_name: str, key: bytes) -> Communicator:
    """Meet the other ranks at the launcher's store and form the process groups.

    Raises:
        RunFailed: a process has taken the place of a rank and does not have the secret.
    """
    import torch.distributed as dist

    from ringexp.choices import TRANSPORTS
    from ringexp.ring.messages import Messages
    from ringexp.worker.communicator import Communicator

    timeout = timedelta(seconds=ranks.jobs[0].config.launch.timeout_s)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(store_name, dist.TCPStore(address, port, is_master=False, timeout=timeout))
    # Weights and inputs are broadcast over the default group. NCCL takes one rank per GPU.
    on_gpus = "cpu" not in TRANSPORTS[ranks.transport].devices and ranks.ranks_per_device == 1
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
        store=dist.PrefixStore("group", store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
    )
    control = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(control, dist.ProcessGroup)
    Messages(key=key, channel="start").all_gather(place.rank)  # raises for a rank without the secret
    return Communicator(place.rank, control, dist.PrefixStore("session", store), key)


def _keys(secret: str) -> tuple[str, bytes]:
    """Return the name of a run's part of the store, and the key of its messages.

    The store tells its names to whoever asks, so they must not give away the secret or the key.
    """
    name, key = (hmac.digest(secret.encode(), use, "sha256") for use in (b"store", b"messages"))
    return name.hex(), key


if __name__ == "__main__":
    main()
