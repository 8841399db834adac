"""A rank process: `python -m ringexp.launch.rank RANK_SET.json`, with RANK, WORLD_SIZE and LOCAL_RANK set.

It dies with its launcher, joins the others at MASTER_ADDR:MASTER_PORT, applies its throttle, does its jobs.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the launcher `parent` ends, however it ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def error_file(rank_set: Path, rank: int) -> Path:
    """Where a rank leaves the exception that ended it: its time (s), type and message."""
    return rank_set.with_suffix(f".error_{rank}.json")


def main() -> None:
    if parent := os.environ.get("RINGEXP_LAUNCHER_PID"):
        die_with_parent(int(parent))
    try:
        _main()
    except Exception as error:
        ended = time.time()  # the earliest of all ranks' errors is the cause, the others are its victims
        traceback.print_exc()
        document = {"time": ended, "type": type(error).__name__, "message": " ".join(str(error).split())}
        error_file(Path(sys.argv[1]), int(os.environ["RANK"])).write_text(json.dumps(document))
        sys.exit(1)


def _main() -> None:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from ringexp.hetero.throttle import rank_throttle
    from ringexp.launch.job import run_job
    from ringexp.launch.progress import ProgressWriter
    from ringexp.launch.session import Session
    from ringexp.launch.spec import RankSet
    from ringexp.machine import cores_a_rank
    from ringexp.ring.transport import make_transport

    path = Path(sys.argv[1])
    ranks = RankSet.from_json(path.read_text())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if ranks.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(cores_a_rank(world_size))
    timeout = timedelta(seconds=ranks.jobs[0].config.launch.timeout_s)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    backend = "cpu:gloo,cuda:nccl" if ranks.transport == "nccl" else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world_size, timeout=timeout
    )
    control = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(control, dist.ProcessGroup)
    progress = ProgressWriter(path.with_suffix(".progress") if rank == 0 else None)
    with rank_throttle(ranks.throttle, ranks.percentages[rank], device) as throttle:
        session = Session(
            ranks,
            rank,
            device,
            throttle,
            make_transport(ranks.transport, device),
            control,
            dist.PrefixStore("session", store),
            progress,
        )
        session.warn_of_mended_cublas()
        for index, job in enumerate(ranks.jobs):
            progress.job(index)
            run_job(session, job)
    session.barrier()
    session.close()


if __name__ == "__main__":
    main()
