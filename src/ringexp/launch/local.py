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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.errors import Interrupted, RunFailed, UserError
from ringexp.hetero.throttle import host_throttle
from ringexp.interrupts import Interrupts
from ringexp.launch.supervision import (
    GRACE_S,
    POLL_S,
    Display,
    StopWatch,
    earliest_error,
    killed,
    progress_reader,
    rendezvous,
    stopped_too_long,
    write_rank_set,
)
from ringexp.machine import cores_per_rank
from ringexp.worker.rank_error import error_file
from ringexp.worker.rank_place import RankPlace
from ringexp.worker.rank_set import RankSet

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

VICTIMS_S = 0.5  # for other ranks to write their errors too, so that the earliest is known


def run_ranks(ranks: RankSet, workdir: Path, display: Display) -> None:
    """See `supervision.RunRanks`."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    path = write_rank_set(ranks, workdir)
    started: list[SubprocessContext] = []
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we report failures ourselves
    with (
        Interrupts(again=lambda: _kill(started), once=True) as interrupts,
        rendezvous(ranks.jobs[0].config.launch.port) as meeting,
        host_throttle(ranks.throttle, ranks.percentages, workdir, ranks.drifting) as extra,
    ):
        environments = {
            rank: _place(ranks, rank).to_environment() | meeting | extra[rank]
            for rank in range(ranks.world_size)
        }
        try:
            started.append(_start(path, environments, workdir))
            interrupts.install()  # torch has set handlers of its own
            _follow(started[0], path, display)
        except SignalException as stop:  # by torch's handlers, before ours were back
            raise Interrupted(f"{stop.sigval.name} to the launcher") from stop
        finally:
            interrupts.closing()
            for processes in started:
                processes.close(signal.SIGTERM, GRACE_S)


def _kill(started: Sequence[SubprocessContext]) -> None:
    """Kill all ranks at once: whoever interrupts twice does not wait for them to end in good order."""
    for processes in started:
        for pid in processes.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _place(ranks: RankSet, rank: int) -> RankPlace:
    """Return a rank's place on this machine."""
    return RankPlace(
        rank=rank,
        world_size=ranks.world_size,
        local_rank=rank % ranks.num_devices if ranks.device == "cuda" else rank,
        cpu_threads=cores_per_rank(ranks.world_size),
        launcher_pid=os.getpid(),
    )


def _start(path: Path, environments: dict[int, dict[str, str]], workdir: Path) -> SubprocessContext:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    arguments = ("-m", "ringexp.worker.rank", str(path))
    processes = start_processes(
        name="ringexp",
        entrypoint=sys.executable,
        args=dict.fromkeys(environments, arguments),
        envs=environments,
        logs_specs=DefaultLogsSpecs(log_dir=str(workdir / "logs"), redirects=Std.ALL),
    )
    assert isinstance(processes, SubprocessContext)  # what a command, not a function, is run by
    return processes


def _follow(processes: SubprocessContext, path: Path, display: Display) -> None:
    """Show progress until all ranks have ended or one has failed."""
    reader, watch = progress_reader(path.parent), StopWatch()
    rank_of = {pid: rank for rank, pid in processes.pids().items()}
    while True:
        for event in reader.events():
            display.event(event)
        if _failed(processes):
            time.sleep(VICTIMS_S)
            failed = _failed(processes)  # before we end the others
            processes.close(signal.SIGTERM, GRACE_S)
            raise _explain(processes, path, failed)
        if overdue := watch.overdue(rank_of):
            processes.close(signal.SIGTERM, GRACE_S)
            raise RunFailed(stopped_too_long(rank_of[overdue[0]], overdue[0]))
        if processes.wait(0) is not None:
            for event in reader.events():
                display.event(event)
            return
        time.sleep(POLL_S)


def _failed(processes: SubprocessContext) -> dict[int, int]:
    """Exit codes of the ranks that have ended badly so far."""
    codes = {rank: handler.proc.poll() for rank, handler in processes.subprocess_handlers.items()}
    return {rank: code for rank, code in codes.items() if code}


def _explain(
    processes: SubprocessContext, path: Path, failed: dict[int, int]
) -> UserError | RunFailed | Interrupted:
    """Return what ended the ranks: what one refused, else a signal one of them got, else the earliest
    exception, else the exit code of one that told nothing, else what the victims of another said.

    A rank that told of an exception may still die of a signal while it ends: the exception came first.
    """
    logs = processes.stderrs
    error = earliest_error(path, failed, logs, victims=False)
    if isinstance(error, UserError):
        return error
    silent = {rank: code for rank, code in failed.items() if not error_file(path, rank).exists()}
    for rank, code in silent.items():
        if code < 0:
            return RunFailed(killed(rank, -code, processes.pids()[rank], logs[rank]))
    if error:
        return error
    for rank, code in silent.items():
        why = f" ({os.strerror(code)})" if code > 1 else ""  # of an OSError that could not be written down
        return RunFailed(f"rank {rank} ended with exit code {code}{why}; its log: {logs[rank]}")
    error = earliest_error(path, failed, logs)
    assert error, "each rank that failed has told why, or is silent"
    return error
