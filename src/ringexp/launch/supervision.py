"""What launchers have in common: the rendezvous they host, the progress they follow, the error they blame."""

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

BACKLOG = 1024  # connections that may wait while ranks start
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
    # The store binds every interface, whatever host it is told, unless it gets a socket that is bound.
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
    for family, host, own in places:
        try:
            bound = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
            return bound, own
        except OSError as error:
            refused = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # the machine may have no IPv4
                break
    hint = "" if port == 0 else "; use launch.port=0 for any free port"
    raise UserError(f"launch.port={port} cannot be used: {refused.strerror or refused}{hint}") from refused


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
    path: Path, ranks: Iterable[int], log_of: dict[int, str], victims: bool = True
) -> UserError | RunFailed | Interrupted | None:
    """Return what ended the ranks, by the errors that they wrote or that was written of them; else None.

    A rank that refuses what it was asked is the cause, though its peers may have died of that; else one that
    was killed or stopped; else the earliest error of its own; else, with `victims`, the earliest of those
    that only say that a peer is gone.
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
    if kind == RunFailed.__name__:  # said by who watched it
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
