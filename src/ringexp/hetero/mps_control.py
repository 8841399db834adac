"""Talk to an MPS daemon through its control program, and stop it for good.

Stdlib only, because it also runs as a script:

    python mps_control.py PIPE_DIRECTORY LOG_DIRECTORY

is the watchdog of a launcher. It waits for its stdin to close, which happens however the launcher ends. Then
it stops the daemon if it still runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

CONTROL_PROGRAM = "nvidia-cuda-mps-control"
PIPE_DIRECTORY_ENV = "CUDA_MPS_PIPE_DIRECTORY"
LOG_DIRECTORY_ENV = "CUDA_MPS_LOG_DIRECTORY"

_PROCESS_NAME = "nvidia-cuda-mps"  # control daemon and servers, as the kernel cuts their names to 15 bytes


def directories_env(pipe_directory: str, log_directory: str | None) -> dict[str, str]:
    """Return the variables by which a daemon and its clients find each other."""
    env = {PIPE_DIRECTORY_ENV: pipe_directory}
    return env if log_directory is None else {**env, LOG_DIRECTORY_ENV: log_directory}


def ask(command: str, pipe_directory: str, timeout_s: float = 10.0) -> str | None:
    """Send one command to the daemon of a pipe directory. Return its answer, or None without one."""
    env = {**os.environ, PIPE_DIRECTORY_ENV: pipe_directory}
    try:
        answer = subprocess.run(
            [CONTROL_PROGRAM],
            input=command + "\n",
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def answers(pipe_directory: str) -> bool:
    """Return whether a daemon serves a pipe directory."""
    percentage = ask("get_default_active_thread_percentage", pipe_directory)
    try:
        return percentage is not None and float(percentage) > 0
    except ValueError:
        return False


def processes(pipe_directory: str) -> list[int]:
    """Return the process ids of the daemon and the servers that were started with a pipe directory."""
    variable = f"{PIPE_DIRECTORY_ENV}={pipe_directory}".encode()
    pids = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            is_mps = (folder / "comm").read_text(encoding="utf-8", errors="replace").startswith(_PROCESS_NAME)
            if is_mps and variable in (folder / "environ").read_bytes().split(b"\0"):
                pids.append(int(folder.name))
        except OSError:  # gone meanwhile, or another user's
            continue
    return pids


def stop(pipe_directory: str, log_directory: str, patience_s: float = 10.0) -> None:
    """Ask the daemon to quit, kill processes that are left after `patience_s` seconds, remove both folders.

    The daemon waits for its clients before it quits, so end them first. It may be stopped twice.
    """
    deadline = time.monotonic() + patience_s
    ask("quit", pipe_directory, timeout_s=patience_s)
    while processes(pipe_directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in processes(pipe_directory):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    for folder in (pipe_directory, log_directory):
        shutil.rmtree(folder, ignore_errors=True)


def _watch(pipe_directory: str, log_directory: str) -> None:
    sys.stdin.buffer.read()
    if os.path.isdir(pipe_directory):
        stop(pipe_directory, log_directory)


if __name__ == "__main__":
    _watch(*sys.argv[1:])
