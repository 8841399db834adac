"""The parts that all launchers share: rendezvous, progress, stopped ranks, the error that ended a set."""

from __future__ import annotations

import errno
import json
import re
import secrets
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from ringexp.atomic import PRIVATE, write_atomically
from ringexp.errors import Interrupted, PeerFailed, RunFailed, UserError
from ringexp.worker.progress import ProgressReader
from ringexp.worker.rank_error import error_file
from ringexp.worker.rank_place import SECRET_ENV
from ringexp.worker.rank_set import RankSet

BACKLOG = 1024
"""The number of connections that may wait while ranks start."""
POLL_S = 0.1
GRACE_S = 3
"""Seconds between SIGTERM and SIGKILL for a rank."""
STOPPED_S = 10.0
"""A rank that has been stopped (SIGSTOP) for this many seconds has failed."""


class Display(Protocol):
    """The place where progress is shown."""

    def event(self, event: dict[str, object]) -> None:
        """Show one event of the progress file."""
        ...


class RunRanks(Protocol):
    """A launcher of one set of ranks."""

    def __call__(self, ranks: RankSet, workdir: Path, display: Display) -> None:
        """Start all ranks, follow them to the end, leave nothing running.

        Args:
            ranks: the ranks and their jobs.
            workdir: the folder for the file of the set, progress and logs.
            display: where progress is shown.

        Raises:
            UserError: a rank refused the settings.
            Interrupted: the ranks were asked to end.
            RunFailed: any other failure.
        """
        ...


def write_rank_set(ranks: RankSet, workdir: Path) -> Path:
    """Make the folder of one start of ranks, with the file they read."""
    (workdir / "logs").mkdir(parents=True, exist_ok=True)
    path = workdir / "rank_set.json"
    write_atomically(path, ranks.to_json(), PRIVATE)
    return path


def progress_reader(workdir: Path) -> ProgressReader:
    """Return the reader of the progress of the ranks in `workdir`."""
    return ProgressReader(workdir / "rank_set.progress")


def jobs_begun(workdir: Path) -> int:
    """Return how many jobs the ranks in `workdir` have begun. The last of them may not have ended."""
    return sum("job" in event for event in progress_reader(workdir).events())


@contextmanager
def rendezvous(port: int, on_network: bool = False) -> Iterator[dict[str, str]]:
    """Host the store by which ranks meet, for the time of the block.

    Args:
        port: 0 for any free one.
        on_network: Ranks are on other machines too, which find this one by an address of their own; without
            it nothing outside this machine can connect.

    Yields:
        The environment by which ranks find the store and each other: MASTER_PORT, the run's secret, and
        unless `on_network` MASTER_ADDR and the loopback interface.
    """
    from torch.distributed import TCPStore

    listener, host = _listener(port, on_network)
    # The store binds every interface, whatever its host argument is, unless it gets a bound socket.
    store = TCPStore(
        host,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=30),
        master_listen_fd=listener.detach(),
    )
    here = {} if on_network else {"MASTER_ADDR": host, **_loopback(host)}
    yield here | {"MASTER_PORT": str(store.port), SECRET_ENV: secrets.token_hex(32)}
    del store


def _loopback(host: str) -> dict[str, str]:
    """Return the environment that keeps ranks' own connections here, whatever a cluster's profile says."""
    gloo, nccl = {"GLOO_SOCKET_IFNAME": "lo"}, {"NCCL_SOCKET_IFNAME": "lo"}
    return gloo | nccl if host == "127.0.0.1" else gloo  # NCCL finds no IPv6 address on loopback


def _listener(port: int, on_network: bool) -> tuple[socket.socket, str]:
    """Return a listening socket and this machine's own name for it. Raises UserError if there is none."""
    both = on_network and socket.has_dualstack_ipv6()
    if both:
        places = [(socket.AF_INET6, "::", "localhost")]
    elif on_network:
        places = [(socket.AF_INET, "0.0.0.0", "localhost")]
    else:
        places = [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "::1")]
    refused = OSError()
    for family, host, name in places:
        try:
            bound = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
            return bound, name
        except OSError as error:
            refused = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # the machine may have no IPv4
                break
    hint = "" if port == 0 else "; use launch.port=0 for any free port"
    raise UserError(f"launch.port={port} cannot be used: {refused.strerror or refused}{hint}") from refused


def killed(rank: int, signum: int, pid: int, log: str | Path) -> str:
    """Return the message about a rank that a signal ended."""
    return f"rank {rank} was killed by {signal.Signals(signum).name} (pid {pid}); its log: {log}"


def stopped(pid: int) -> bool:
    """Tell whether a process is stopped by a signal such as SIGSTOP."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


class StopWatch:
    """Notice ranks that have been stopped for STOPPED_S. Call `overdue` every POLL_S.

    It counts calls, not seconds, so that time in which this process itself was stopped does not count.
    """

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def overdue(self, pids: Iterable[int]) -> list[int]:
        """Return the processes that have been stopped for too long."""
        self._seen = {pid: self._seen.get(pid, 0) + 1 for pid in pids if stopped(pid)}
        return [pid for pid, times in self._seen.items() if times > STOPPED_S / POLL_S]


def stopped_too_long(rank: int, pid: int) -> str:
    """Return the message about a rank that `StopWatch` reports."""
    return f"rank {rank} (pid {pid}) was stopped (SIGSTOP) for {STOPPED_S:g} s"


def earliest_error(
    path: Path, ranks: Iterable[int], log_of: dict[int, str], victims: bool = True
) -> UserError | RunFailed | Interrupted | None:
    """Return what ended the ranks, by the error files; None if there are none.

    The first of these that applies: settings that a rank refused, although its peers may have failed before
    it; a rank that was killed or stopped; the earliest error; with `victims`, the earliest error that only
    says that a peer is gone.

    Args:
        path: the file of the set of ranks.
        ranks: the ranks whose files are read.
        log_of: the log of each rank, for the message.
        victims: also report errors that only say that a peer is gone.
    """
    files = {rank: error_file(path, rank) for rank in ranks}
    errors = {
        rank: json.loads(file.read_text(encoding="utf-8")) for rank, file in files.items() if file.exists()
    }
    if not victims:
        errors = {rank: error for rank, error in errors.items() if not _is_of_a_victim(error)}
    if not errors:
        return None
    causes = {UserError.__name__: 0, RunFailed.__name__: 1}

    def urgency(rank: int) -> tuple[int, float]:
        kind = 3 if _is_of_a_victim(errors[rank]) else causes.get(errors[rank]["type"], 2)
        return kind, errors[rank]["time"]

    rank = min(errors, key=urgency)
    kind, message = errors[rank]["type"], errors[rank]["message"]
    if kind == UserError.__name__:
        return UserError(message)
    if kind == Interrupted.__name__:
        return Interrupted(message)
    if kind == RunFailed.__name__:  # written by the process that watched the rank
        return RunFailed(message)
    return RunFailed(f"rank {rank} failed: {kind}: {message}; traceback in {log_of[rank]}")


def _is_of_a_victim(error: dict[str, str]) -> bool:
    """Tell whether a rank's error only says that a peer is gone."""
    return error["type"] in _VICTIMS or bool(_GONE.search(error["message"]))


_VICTIMS = (PeerFailed.__name__, "DistNetworkError")
_GONE = re.compile(
    "Connection (closed|reset) by peer|Broken pipe|Connection refused|remote process exited", re.IGNORECASE
)
"""The messages of gloo, NCCL and the rendezvous store when the other end of a connection has ended."""
