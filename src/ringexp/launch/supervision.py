"""What launchers have in common: the rendezvous they host, the progress they follow, the error they blame."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from ringexp.atomic import PRIVATE, write_atomically
from ringexp.errors import Interrupted, RunFailed, UserError
from ringexp.launch.progress import ProgressReader
from ringexp.launch.rank import error_file
from ringexp.launch.spec import RankSet

HOST = "127.0.0.1"
POLL_S = 0.1
GRACE_S = 3  # what a rank gets between SIGTERM and SIGKILL
STOPPED_S = 10.0  # a rank that is stopped (SIGSTOP) for so long has failed


class Display(Protocol):
    """Where progress is shown."""

    def event(self, event: dict[str, object]) -> None: ...


class RunRanks(Protocol):
    """A launcher of one set of ranks."""

    def __call__(self, ranks: RankSet, workdir: Path, display: Display) -> None:
        """Start all ranks, follow them to the end, leave nothing running.

        workdir: folder for the jobs file, progress and logs. Raises UserError for what a rank found wrong
        with the settings, Interrupted if the ranks were asked to end, RunFailed for any other failure.
        """
        ...


def write_rank_set(ranks: RankSet, workdir: Path) -> Path:
    """Make the folder of one start of ranks, with the file they read."""
    (workdir / "logs").mkdir(parents=True, exist_ok=True)
    path = workdir / "rank_set.json"
    write_atomically(path, ranks.to_json(), PRIVATE)
    return path


def progress_reader(workdir: Path) -> ProgressReader:
    return ProgressReader(workdir / "rank_set.progress")


def jobs_begun(workdir: Path) -> int:
    """How many jobs the ranks that ran in `workdir` have begun; the last of them may not have ended."""
    return sum("job" in event for event in progress_reader(workdir).events())


@contextmanager
def rendezvous(port: int) -> Iterator[int]:
    """A TCP store hosted here for the time of the block, for ranks here or elsewhere; yields its port."""
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


def killed(rank: int, signum: int, pid: int, log: str | Path) -> str:
    """The message about a rank that a signal ended."""
    return f"rank {rank} was killed by {signal.Signals(signum).name} (pid {pid}); its log: {log}"


def stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal such as SIGSTOP."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


class StopWatch:
    """Notices ranks that have been stopped for STOPPED_S; to be asked every POLL_S.

    It counts how often it was asked, so that time in which this process was stopped too does not count.
    """

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def overdue(self, pids: Iterable[int]) -> list[int]:
        self._seen = {pid: self._seen.get(pid, 0) + 1 for pid in pids if stopped(pid)}
        return [pid for pid, times in self._seen.items() if times > STOPPED_S / POLL_S]


def stopped_too_long(rank: int, pid: int) -> str:
    """The message about a rank that `StopWatch` found."""
    return f"rank {rank} (pid {pid}) was stopped (SIGSTOP) for {STOPPED_S:g} s"


def earliest_error(
    path: Path, ranks: Iterable[int], log_of: dict[int, str]
) -> UserError | RunFailed | Interrupted | None:
    """What the ranks wrote before they ended badly, or who watched them; None if nobody wrote anything.

    A rank that refuses what it was asked is the cause, though its peers may have died of that; else one that
    was killed or stopped; else the earliest error: the others are its victims.
    """
    files = {rank: error_file(path, rank) for rank in ranks}
    errors = {
        rank: json.loads(file.read_text(encoding="utf-8")) for rank, file in files.items() if file.exists()
    }
    if not errors:
        return None
    causes = {UserError.__name__: 0, RunFailed.__name__: 1}
    rank = min(errors, key=lambda rank: (causes.get(errors[rank]["type"], 2), errors[rank]["time"]))
    kind, message = errors[rank]["type"], errors[rank]["message"]
    if kind == UserError.__name__:
        return UserError(message)
    if kind == Interrupted.__name__:
        return Interrupted(message)
    if kind == RunFailed.__name__:  # said by who watched it
        return RunFailed(message)
    return RunFailed(f"rank {rank} failed: {kind}: {message}; traceback in {log_of[rank]}")
