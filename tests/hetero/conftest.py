"""A stand-in for NVIDIA's MPS control program, and a launcher that uses it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringexp.hetero import mps, mps_control

FAKE_PROGRAM = r"""#!/bin/bash
# -d starts a daemon that serves CUDA_MPS_PIPE_DIRECTORY; without arguments it passes stdin to the daemon.
pipe=$CUDA_MPS_PIPE_DIRECTORY
record=$(dirname "$0")/record
pid_file=$pipe/nvidia-cuda-mps-control.pid
case "$1" in
-d)
    [ -n "$FAKE_MPS_FAILS" ] && { echo "no CUDA-capable device"; exit 1; }
    echo "start pipe=$pipe log=$CUDA_MPS_LOG_DIRECTORY visible=$CUDA_VISIBLE_DEVICES" >> "$record"
    [ -n "$FAKE_MPS_MUTE" ] && exit 0
    setsid "$0" serve < /dev/null &
    ;;
serve)
    echo $$ > "$pid_file"  # from here on it answers, under its own name in /proc
    while sleep 0.1; do
        [ -e "$pipe/quit" ] && [ -z "$FAKE_MPS_STUBBORN" ] && exit 0
    done
    ;;
*)
    read -r command
    echo "$command" >> "$record"
    if ! [ -e "$pid_file" ] || ! kill -0 "$(cat "$pid_file")" 2> /dev/null; then
        echo "Cannot find MPS control daemon process"
        exit 1
    fi
    case "$command" in
    get_default_active_thread_percentage) echo 100.0 ;;
    quit) touch "$pipe/quit" ;;
    *) echo "unknown command"; exit 1 ;;
    esac
    ;;
esac
"""


@dataclass(frozen=True)
class FakeMps:
    """The stand-in's folder; it is first on PATH."""

    folder: Path

    def record(self) -> list[str]:
        """Return the commands that the program got, in order."""
        path = self.folder / "record"
        return path.read_text().splitlines() if path.exists() else []

    def starts(self) -> list[str]:
        return [line for line in self.record() if line.startswith("start ")]


@pytest.fixture
def fake_mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMps:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / mps_control.CONTROL_PROGRAM
    program.write_text(FAKE_PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in (mps_control.PIPE_DIRECTORY_ENV, mps_control.LOG_DIRECTORY_ENV, mps.PERCENTAGE_ENV):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mps, "DEFAULT_PIPE_DIRECTORY", str(tmp_path / "default"))
    return FakeMps(folder)


@pytest.fixture
def no_mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH without the control program."""
    monkeypatch.setenv("PATH", str(tmp_path))
