"""Starting and supervising the ranks of one set on this machine, with torch's elastic process launcher.

The launcher hosts the rendezvous store, so the port is either taken at once or free for good. Each rank gets
its environment before it starts, writes its output to its own log, and dies with the launcher. The first rank
that fails ends the others.
"""

from __future__ import annotations

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
from ringexp.launch.spec import RankSet

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.api import PContext

HOST = "127.0.0.1"
POLL_S = 0.1
GRACE_S = 3  # what a rank gets between SIGTERM and SIGKILL


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
            _follow(processes, ProgressReader(_progress_file(workdir)), display)
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


def _start(path: Path, environments: dict[int, dict[str, str]], workdir: Path) -> PContext:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes

    arguments = ("-m", "ringexp.launch.rank", str(path))
    logs = workdir / "logs"
    logs.mkdir(exist_ok=True)
    return start_processes(
        name="ringexp",
        entrypoint=sys.executable,
        args=dict.fromkeys(environments, arguments),
        envs=environments,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )


def _follow(processes: PContext, reader: ProgressReader, display: Display) -> None:
    """Show progress until all ranks have ended or one has failed."""
    while True:
        for event in reader.events():
            display.event(event)
        if _any_failed(processes):
            time.sleep(0.5)  # victims of the first failure end too; the earliest error file is the cause
            processes.close(signal.SIGTERM, GRACE_S)
        result = processes.wait(0)
        if result is not None:
            for event in reader.events():
                display.event(event)
            if result.is_failed():
                raise _explain(processes, result.failures)
            return
        time.sleep(POLL_S)


def _any_failed(processes: PContext) -> bool:
    handlers = getattr(processes, "subprocess_handlers", {})
    return any(handler.proc.poll() not in (None, 0) for handler in handlers.values())


def _explain(processes: PContext, failures: dict) -> Exception:
    """The error of the rank that failed first: a signal, its own exception, or its exit code."""
    own = [
        failure
        for failure in failures.values()
        if failure.error_file_data.get("message", "<NONE>") != "<NONE>"
    ]
    killed_by_us = {-signal.SIGTERM}
    crashed = [failure for failure in failures.values() if failure.exitcode not in killed_by_us]
    first = min(
        [f for f in crashed if f.exitcode < 0] or own or crashed or list(failures.values()),
        key=lambda failure: failure.timestamp,
    )
    rank, log = first.local_rank, processes.stderrs[first.local_rank]
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        return RunFailed(f"rank {rank} was killed by {name} (pid {first.pid}); its log: {log}")
    data = first.error_file_data.get("message")
    message = data["message"] if isinstance(data, dict) else str(data)
    if message.startswith("UserError: "):
        return UserError(message.removeprefix("UserError: "))
    if message == "<NONE>":
        message = f"exit code {first.exitcode}"
    return RunFailed(f"rank {rank} failed: {' '.join(message.split())}; traceback in {log}")
