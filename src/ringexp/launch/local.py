"""Starting and supervising the ranks of one set on this machine, with torch's elastic process launcher.

The launcher hosts the rendezvous store, so the port is either taken at once or free for good. Each rank gets
its environment before it starts, writes its output to its own log, and dies with the launcher. The first rank
that fails ends the others.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ringexp.errors import RunFailed, UserError
from ringexp.hetero.throttle import host_throttle
from ringexp.launch.progress import ProgressReader
from ringexp.launch.rank import error_file
from ringexp.launch.spec import RankSet

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

HOST = "127.0.0.1"
POLL_S = 0.1
GRACE_S = 3  # what a rank gets between SIGTERM and SIGKILL
VICTIMS_S = 0.5  # for other ranks to write their errors too, so that the earliest is known


class Display(Protocol):
    """Where progress is shown."""

    def event(self, event: dict[str, object]) -> None: ...


def jobs_begun(workdir: Path) -> int:
    """How many jobs the ranks that ran in `workdir` have begun; the last of them may not have ended."""
    return sum("job" in event for event in ProgressReader(_progress_file(workdir)).events())


def _progress_file(workdir: Path) -> Path:
    return workdir / "rank_set.progress"


def run_ranks(ranks: RankSet, workdir: Path, display: Display) -> None:
    """Start all ranks, follow them to the end, leave nothing running.

    workdir: folder for the jobs file, progress and logs. Raises UserError for what a rank found wrong with
    the settings, RunFailed for any other failure.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "rank_set.json"
    path.write_text(ranks.to_json())
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we report failures ourselves
    with (
        _rendezvous(ranks.jobs[0].config.launch.port) as port,
        host_throttle(ranks.throttle, ranks.percentages, workdir) as extra,
    ):
        environments = {
            rank: _environment(ranks, rank, port) | extra[rank] for rank in range(ranks.world_size)
        }
        processes = _start(path, environments, workdir)
        try:
            _follow(processes, path, display)
        except SignalException as stop:  # torch turns SIGINT and SIGTERM into this one
            raise KeyboardInterrupt from stop
        finally:
            processes.close(signal.SIGTERM, GRACE_S)


def _environment(ranks: RankSet, rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_RANK": str(rank % ranks.num_devices if ranks.device == "cuda" else rank),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "RINGEXP_LAUNCHER_PID": str(os.getpid()),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def _rendezvous(port: int) -> Iterator[int]:
    """A TCP store hosted here for the time of the block; yields its port."""
    from torch.distributed import TCPStore

    try:
        store = TCPStore(HOST, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    except RuntimeError as error:
        raise UserError(
            f"launch.port={port} cannot be used on {HOST}: it is taken by another process or not allowed; "
            "use launch.port=0 for any free port"
        ) from error
    yield store.port
    del store


def _start(path: Path, environments: dict[int, dict[str, str]], workdir: Path) -> SubprocessContext:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    arguments = ("-m", "ringexp.launch.rank", str(path))
    logs = workdir / "logs"
    logs.mkdir(exist_ok=True)
    processes = start_processes(
        name="ringexp",
        entrypoint=sys.executable,
        args=dict.fromkeys(environments, arguments),
        envs=environments,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    assert isinstance(processes, SubprocessContext)  # what a command, not a function, is run by
    return processes


def _follow(processes: SubprocessContext, path: Path, display: Display) -> None:
    """Show progress until all ranks have ended or one has failed."""
    reader = ProgressReader(_progress_file(path.parent))
    while True:
        for event in reader.events():
            display.event(event)
        if _failed(processes):
            time.sleep(VICTIMS_S)
            failed = _failed(processes)  # before we end the others
            processes.close(signal.SIGTERM, GRACE_S)
            raise _explain(processes, path, failed)
        if processes.wait(0) is not None:
            for event in reader.events():
                display.event(event)
            return
        time.sleep(POLL_S)


def _failed(processes: SubprocessContext) -> dict[int, int]:
    """Exit codes of the ranks that have ended badly so far."""
    codes = {rank: handler.proc.poll() for rank, handler in processes.subprocess_handlers.items()}
    return {rank: code for rank, code in codes.items() if code}


def _explain(processes: SubprocessContext, path: Path, failed: dict[int, int]) -> UserError | RunFailed:
    """What ended the ranks: a signal one of them got, else the earliest exception, else an exit code.

    A rank that told of an exception may still die of a signal while it ends: the exception came first.
    """
    for rank, code in failed.items():
        if code < 0 and not error_file(path, rank).exists():
            pid = processes.pids()[rank]
            name = signal.Signals(-code).name
            return RunFailed(
                f"rank {rank} was killed by {name} (pid {pid}); its log: {processes.stderrs[rank]}"
            )
    written = {rank: error_file(path, rank) for rank in failed}
    errors = {rank: json.loads(file.read_text()) for rank, file in written.items() if file.exists()}
    if not errors:
        rank, code = next(iter(failed.items()))
        return RunFailed(f"rank {rank} ended with exit code {code}; its log: {processes.stderrs[rank]}")
    rank = min(errors, key=lambda rank: errors[rank]["time"])
    kind, message = errors[rank]["type"], errors[rank]["message"]
    if kind == UserError.__name__:
        return UserError(message)
    return RunFailed(f"rank {rank} failed: {kind}: {message}; traceback in {processes.stderrs[rank]}")
