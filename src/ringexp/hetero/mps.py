"""NVIDIA MPS: a daemon per launch limits the SMs of each rank (hetero.throttle=mps).

    with mps_daemon(workdir) as variables:           # launcher
        start(envs=rank_environments(variables, [100, 50]))

MPS caps the SMs that a process may use; it does not reserve them.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.errors import UserError
from ringexp.hetero import mps_control
from ringexp.hetero.applied import AppliedThrottle, Throttle, sms_of
from ringexp.hetero.mps_control import CONTROL_PROGRAM
from ringexp.hetero.mps_probe import refusal
from ringexp.hetero.profiles import format_percentage
from ringexp.hetero.sm_count import SM_TOTAL_ENV, check_grant, probe_sm_totals, sm_total
from ringexp.hetero.watchdog import cleaned_up

if TYPE_CHECKING:
    import torch

PERCENTAGE_ENV = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
SM_GRANULE = 2
"""MPS grants SMs in multiples of this: 118 at 90 %, 66 at 50 %, 12 at 10 % of 132."""

START_S = 10.0
"""The longest time for a daemon to start, and again for its first answer."""

DEFAULT_PIPE_DIRECTORY = "/tmp/nvidia-mps"
"""The folder of the daemon's sockets if CUDA_MPS_PIPE_DIRECTORY does not name another."""

_INSTEAD = "hetero.throttle=green_context needs no daemon"


class Mps(Throttle):
    """Limit each rank's SMs through its environment; ranks of a machine share one daemon."""

    @contextmanager
    def on_host(
        self, percentages: Sequence[float], workdir: Path, drifting: bool
    ) -> Iterator[list[dict[str, str]]]:
        """Run the daemon, and yield each rank's variables."""
        sm_totals = sm_total_environment()
        with mps_daemon(workdir) as variables:
            yield rank_environments({**variables, **sm_totals}, percentages)

    @contextmanager
    def on_rank(self, percentage: float, device: str | torch.device) -> Iterator[AppliedThrottle]:
        """Check the SMs that this process was granted; limit cuBLAS if it is wrong with them."""
        from ringexp.hetero.blas import mend_cublas

        index, granted = sms_of(device)
        total = sm_total(index)
        check_grant(self.spec.name, percentage, granted, total, SM_GRANULE)
        yield AppliedThrottle(self.spec, percentage, granted, total, cublas_sms=mend_cublas(device))


def rank_environments(variables: dict[str, str], percentages: Sequence[float]) -> list[dict[str, str]]:
    """Return the environment variables of each rank: the daemon's and the rank's percentage."""
    return [{**variables, PERCENTAGE_ENV: format_percentage(value)} for value in percentages]


@contextmanager
def mps_daemon(workdir: Path) -> Iterator[dict[str, str]]:
    """Run an MPS daemon for the time of the block.

    A daemon that the user already runs is used and left alone: the one behind CUDA_MPS_PIPE_DIRECTORY, or
    else in NVIDIA's default folder. Otherwise a private daemon is started. It is stopped after the block,
    also on exceptions and at interpreter exit; if this process is killed, a watchdog stops it.

    Args:
        workdir: an existing folder for the log of a private daemon, which is removed with it.

    Yields:
        The environment variables that the daemon's clients need.

    Raises:
        UserError: if the daemon does not start, or if the user's daemon refuses clients.
    """
    theirs = os.environ.get(mps_control.PIPE_DIRECTORY_ENV) or DEFAULT_PIPE_DIRECTORY
    if _is_for_us(theirs) and mps_control.answers(theirs):
        variables = mps_control.directories_env(theirs, os.environ.get(mps_control.LOG_DIRECTORY_ENV))
        if why := refusal(variables):
            raise UserError(
                f"hetero.throttle=mps: the MPS daemon that runs in {theirs} refuses clients ({why}), as it "
                f"does once a client was killed in a kernel. It is not ours to restart: "
                f"echo quit | {mps_control.PIPE_DIRECTORY_ENV}={theirs} {CONTROL_PROGRAM}, then start it "
                "again, or run ringexp without it"
            )
        yield variables
        return

    pipe_directory = tempfile.mkdtemp(prefix="mps-", dir="/tmp")  # sockets: the path has to be short
    log_directory = tempfile.mkdtemp(prefix="mps-log-", dir=workdir.absolute())
    stop = partial(mps_control.stop, pipe_directory, log_directory)
    with cleaned_up(stop, mps_control.__file__, pipe_directory, log_directory):
        variables = mps_control.directories_env(pipe_directory, log_directory)
        _start(variables, Path(log_directory))
        yield variables


def _is_for_us(pipe_directory: str) -> bool:
    """Return whether the daemon of a folder serves this user: the folder belongs to the user or to root.

    In NVIDIA's default place, which is open to all, the folder must not be a link, and nobody else may write
    in it: whoever can write there could pose as the daemon.
    """
    is_default = pipe_directory == DEFAULT_PIPE_DIRECTORY
    try:
        status = os.lstat(pipe_directory) if is_default else os.stat(pipe_directory)
    except OSError:
        return False
    open_to_all = is_default and status.st_mode & stat.S_IWOTH
    return stat.S_ISDIR(status.st_mode) and status.st_uid in (0, os.getuid()) and not open_to_all


def sm_total_environment() -> dict[str, str]:
    """Return the variable that tells ranks the SMs of every device; {} if devices differ."""
    totals = set(probe_sm_totals())
    return {SM_TOTAL_ENV: str(totals.pop())} if len(totals) == 1 else {}


def _start(variables: dict[str, str], log_directory: Path) -> None:
    """Start a daemon and wait for its first answer. Raises UserError if there is none."""
    env = {**os.environ, **variables}
    # A daemon with CUDA_VISIBLE_DEVICES renumbers the devices, and the ranks' own setting would not fit.
    for name in ("CUDA_VISIBLE_DEVICES", PERCENTAGE_ENV):
        env.pop(name, None)
    output = log_directory / "start.txt"  # not a pipe: the daemon would hold it open
    try:
        with output.open("w", encoding="utf-8") as sink:
            started = subprocess.run(
                [CONTROL_PROGRAM, "-d"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                timeout=START_S,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"hetero.throttle=mps: {CONTROL_PROGRAM} -d: {error}; {_INSTEAD}") from error
    if started.returncode != 0:
        raise UserError(
            f"hetero.throttle=mps: {CONTROL_PROGRAM} -d ended with exit status {started.returncode} "
            f"({_said(log_directory)}); {_INSTEAD}"
        )
    deadline = time.monotonic() + START_S
    while not mps_control.answers(variables[mps_control.PIPE_DIRECTORY_ENV]):
        if time.monotonic() > deadline:
            raise UserError(
                f"hetero.throttle=mps: the MPS daemon does not answer within {START_S:g} s "
                f"({_said(log_directory)}); {_INSTEAD}"
            )
        time.sleep(0.05)


def _said(log_directory: Path) -> str:
    """Return the last line of the daemon's output or log."""
    for name in ("start.txt", "control.log"):
        path = log_directory / name
        lines = (
            path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.exists() else []
        )
        if lines:
            return lines[-1].strip()
    return "it said nothing"
