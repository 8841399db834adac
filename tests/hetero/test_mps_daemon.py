from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringexp.errors import UserError
from ringexp.hetero import mps, mps_control
from ringexp.hetero.mps import PERCENTAGE_ENV
from ringexp.hetero.mps_control import LOG_DIRECTORY_ENV, PIPE_DIRECTORY_ENV
from ringexp.hetero.mps_probe import refusal
from ringexp.hetero.sm_count import SM_TOTAL_ENV
from ringexp.hetero.throttle import host_throttle

LAUNCHER = """
import json, sys, time
from pathlib import Path
from ringexp.hetero.throttle import host_throttle
throttle = host_throttle("mps", [100, 50], Path(sys.argv[1]))
envs = throttle.__enter__()
print(json.dumps(envs), flush=True)
if sys.argv[2] == "hang":
    time.sleep(60)
"""


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def launch(workdir):
    """Start a launcher in its own process, which never leaves the throttle; returns it and its envs."""
    started = []

    def start(then: str) -> tuple[subprocess.Popen[str], list[dict[str, str]]]:
        command = [sys.executable, "-c", LAUNCHER, str(workdir), then]
        launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(launcher)
        assert launcher.stdout is not None
        return launcher, json.loads(launcher.stdout.readline())

    yield start
    for launcher in started:
        launcher.kill()
        launcher.communicate()


def wait_until_gone(env: dict[str, str], seconds: float = 15.0) -> None:
    """Wait for the daemon's end; fail if it lives on."""
    deadline = time.monotonic() + seconds
    while mps_control.processes(env[PIPE_DIRECTORY_ENV]) or Path(env[PIPE_DIRECTORY_ENV]).exists():
        assert time.monotonic() < deadline, "the MPS daemon outlived its launcher"
        time.sleep(0.05)


def test_a_daemon_serves_the_block_and_is_stopped_after_it(fake_mps, workdir):
    with host_throttle("mps", [100, 50], workdir) as envs:
        pipe_directory = envs[0][PIPE_DIRECTORY_ENV]
        assert mps_control.answers(pipe_directory)
        assert mps_control.processes(pipe_directory)
    assert not mps_control.processes(pipe_directory)
    assert fake_mps.record()[-1] == "quit"
    assert not Path(pipe_directory).exists()
    assert list(workdir.iterdir()) == []


def test_each_rank_gets_the_daemon_and_its_percentage(fake_mps, workdir):
    with host_throttle("mps", [100, 50, 12.5], workdir) as envs:
        assert [env[PERCENTAGE_ENV] for env in envs] == ["100", "50", "12.5"]
        assert len({env[PIPE_DIRECTORY_ENV] for env in envs}) == 1
        assert Path(envs[0][LOG_DIRECTORY_ENV]).parent == workdir


def test_the_ranks_are_told_the_sms_of_the_device_if_all_have_as_many(fake_mps, workdir, monkeypatch):
    monkeypatch.setattr(mps, "probe_sm_totals", lambda: [132, 132])
    with host_throttle("mps", [100, 50], workdir) as envs:
        assert [env[SM_TOTAL_ENV] for env in envs] == ["132", "132"]


@pytest.mark.parametrize("totals", [[], [132, 80]], ids=["unknown", "mixed"])
def test_the_ranks_are_told_no_total_that_may_be_wrong(fake_mps, workdir, monkeypatch, totals):
    monkeypatch.setattr(mps, "probe_sm_totals", lambda: totals)
    with host_throttle("mps", [100, 50], workdir) as envs:
        assert all(SM_TOTAL_ENV not in env for env in envs)


def test_sockets_get_a_short_path_however_deep_the_work_folder(fake_mps, workdir):
    deep = workdir / ("d" * 120)
    deep.mkdir()
    with host_throttle("mps", [100, 50], deep) as envs:
        assert len(envs[0][PIPE_DIRECTORY_ENV]) < 40


def test_the_daemon_sees_all_devices(fake_mps, workdir, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with host_throttle("mps", [100, 50], workdir):
        assert [line.split()[-1] for line in fake_mps.starts()] == ["visible="]


def test_the_daemon_is_stopped_on_an_exception(fake_mps, workdir):
    with pytest.raises(KeyboardInterrupt), host_throttle("mps", [100, 50], workdir) as envs:
        raise KeyboardInterrupt
    assert not mps_control.processes(envs[0][PIPE_DIRECTORY_ENV])


def test_a_daemon_that_will_not_quit_is_killed(fake_mps, workdir, monkeypatch):
    monkeypatch.setenv("FAKE_MPS_STUBBORN", "1")
    with host_throttle("mps", [100, 50], workdir) as envs:
        monkeypatch.setattr(mps_control.stop, "__defaults__", (0.3,))
    wait_until_gone(envs[0], seconds=2)


@pytest.fixture(params=["set", "default"])
def theirs(request, fake_mps, workdir, monkeypatch):
    """The pipe directory of a daemon that the user runs: where a variable says, or in the usual place."""
    folder = workdir / "theirs" if request.param == "set" else Path(mps.DEFAULT_PIPE_DIRECTORY)
    folder.mkdir()
    start = [mps_control.CONTROL_PROGRAM, "-d"]
    subprocess.run(start, env=os.environ | {PIPE_DIRECTORY_ENV: str(folder)}, check=True)
    if request.param == "set":
        monkeypatch.setenv(PIPE_DIRECTORY_ENV, str(folder))
    deadline = time.monotonic() + 10
    while not mps_control.answers(str(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield str(folder)
    mps_control.stop(str(folder), str(folder))


def test_the_daemon_of_the_user_is_used_and_left_alone(fake_mps, workdir, theirs):
    with host_throttle("mps", [100, 50], workdir) as envs:
        assert [env[PIPE_DIRECTORY_ENV] for env in envs] == [theirs] * 2
        assert [env[PERCENTAGE_ENV] for env in envs] == ["100", "50"]
    assert mps_control.answers(theirs)
    assert len(fake_mps.starts()) == 1
    assert "quit" not in fake_mps.record()


def test_the_default_folder_is_trusted_if_others_cannot_put_it_there(tmp_path, monkeypatch):
    """Anybody may make a folder or a link at the place where NVIDIA's programs look."""
    default, real = tmp_path / "default", tmp_path / "real"
    monkeypatch.setattr(mps, "DEFAULT_PIPE_DIRECTORY", str(default))
    real.mkdir()
    assert not mps._is_for_us(str(default))
    default.symlink_to(real)
    assert not mps._is_for_us(str(default))
    default.unlink()
    default.mkdir()
    assert mps._is_for_us(str(default))
    default.chmod(0o1777)
    assert not mps._is_for_us(str(default))


def test_the_private_daemons_folders_are_for_the_user_alone(fake_mps, workdir):
    with mps.mps_daemon(workdir) as variables:
        folders = [Path(folder) for folder in variables.values()]
        assert len(folders) == 2
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def test_the_daemon_of_another_user_is_not_used(fake_mps, workdir, theirs, monkeypatch):
    monkeypatch.setattr(mps, "_is_for_us", lambda folder: folder != theirs)
    with host_throttle("mps", [100, 50], workdir) as envs:
        assert envs[0][PIPE_DIRECTORY_ENV] != theirs
    assert mps_control.answers(theirs)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A CUDA driver whose contexts come to nothing, with this code."""

    def build(code: int) -> None:
        source = tmp_path / "cuda.c"
        source.write_text(
            "int cuInit(unsigned f) { return 0; }\n"
            "int cuDeviceGet(int *d, int i) { *d = 0; return 0; }\n"
            f"int cuDevicePrimaryCtxRetain(void **c, int d) {{ return {code}; }}\n"
            'int cuGetErrorName(int e, const char **n) { *n = e ? "CUDA_ERROR_X" : "OK"; return 0; }\n'
        )
        library = tmp_path / "libcuda.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    return build


@pytest.mark.parametrize("code", [46, 807])
def test_a_daemon_of_the_user_that_refuses_clients_is_reported(fake_mps, workdir, theirs, driver, code):
    driver(code)
    with pytest.raises(UserError, match=r"refuses clients \(CUDA_ERROR_X\).* not ours to restart: echo quit"):
        with host_throttle("mps", [100, 50], workdir):
            pass
    assert mps_control.answers(theirs)


@pytest.mark.parametrize("code", [0, 2])
def test_only_a_refusal_speaks_against_a_daemon(driver, code):
    driver(code)
    assert refusal({}) is None


def test_without_a_driver_nothing_speaks_against_a_daemon(monkeypatch, tmp_path):
    monkeypatch.setattr("ringexp.hetero.mps_probe.__file__", str(tmp_path / "missing.py"))
    assert refusal({}) is None


def test_runs_side_by_side_have_daemons_of_their_own(fake_mps, workdir):
    with host_throttle("mps", [100, 50], workdir) as first:
        with host_throttle("mps", [100, 50], workdir) as second:
            assert first[0][PIPE_DIRECTORY_ENV] != second[0][PIPE_DIRECTORY_ENV]
        assert mps_control.answers(first[0][PIPE_DIRECTORY_ENV])
    assert not mps_control.answers(first[0][PIPE_DIRECTORY_ENV])


def test_a_pipe_folder_without_a_daemon_is_not_reused(fake_mps, workdir, monkeypatch):
    monkeypatch.setenv(PIPE_DIRECTORY_ENV, str(workdir))
    with host_throttle("mps", [100, 50], workdir) as envs:
        assert envs[0][PIPE_DIRECTORY_ENV] != str(workdir)
        assert len(fake_mps.starts()) == 1


def test_the_daemon_does_not_outlive_a_killed_launcher(fake_mps, workdir, launch):
    launcher, envs = launch("hang")
    assert mps_control.processes(envs[0][PIPE_DIRECTORY_ENV])
    os.kill(launcher.pid, signal.SIGKILL)
    wait_until_gone(envs[0])
    assert fake_mps.record()[-1] == "quit"
    assert list(workdir.iterdir()) == []


def test_the_daemon_does_not_outlive_a_launcher_that_forgets_it(fake_mps, workdir, launch):
    launcher, envs = launch("leave")
    assert launcher.wait(timeout=15) == 0
    wait_until_gone(envs[0])


def test_a_start_that_fails_says_why(fake_mps, workdir, monkeypatch):
    monkeypatch.setenv("FAKE_MPS_FAILS", "1")
    with pytest.raises(UserError) as caught, host_throttle("mps", [100, 50], workdir):
        pass
    for part in ("hetero.throttle=mps", "exit status 1", "no CUDA-capable device", "green_context"):
        assert part in str(caught.value)
    assert list(workdir.iterdir()) == []


def test_a_daemon_that_never_answers_is_given_up(fake_mps, workdir, monkeypatch):
    monkeypatch.setenv("FAKE_MPS_MUTE", "1")
    monkeypatch.setattr(mps, "START_S", 0.5)
    with pytest.raises(UserError, match=r"does not answer within 0.5 s \(it said nothing\)"):
        with host_throttle("mps", [100, 50], workdir):
            pass


def test_a_program_that_is_not_there_is_named(no_mps, workdir):
    with pytest.raises(UserError, match=r"nvidia-cuda-mps-control -d: .*No such file"):
        with host_throttle("mps", [100, 50], workdir):
            pass
