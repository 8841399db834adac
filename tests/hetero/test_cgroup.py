from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringexp.errors import UserError
from ringexp.hetero import cgroup
from ringexp.hetero.cgroup import OwnGroup, make_group, own_group, quota
from ringexp.hetero.cpu_quota import GROUP_ENV, member_of, quota_groups
from ringexp.hetero.throttle import host_throttle

BURN = """
import sys, time
from pathlib import Path
from ringexp.hetero.cpu_quota import member_of
with member_of(Path(sys.argv[1])):
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
"""

LAUNCHER = """
import sys, time
from pathlib import Path
from ringexp.hetero.throttle import host_throttle
with host_throttle("cpu_quota", [50, 100], Path(sys.argv[1])) as envs:
    print(envs[0]["RINGEXP_CGROUP"], flush=True)
    time.sleep(60)
"""


@pytest.fixture
def permitted() -> None:
    try:
        with quota_groups([50], cores=1):
            pass
    except UserError as error:
        pytest.skip(str(error))


def proc(folder: Path, cgroups: str, mounts: str) -> Path:
    (folder / "cgroup").write_text(cgroups)
    (folder / "mountinfo").write_text(mounts)
    return folder


V1 = "33 31 0:30 {root} {mount} rw - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "41 31 0:38 {root} {mount} rw - cgroup2 cgroup2 rw,nsdelegate\n"


def test_version_1_is_taken_where_it_has_the_cpu_controller(tmp_path):
    mounts = V2.format(root="/", mount="/sys/u") + V1.format(root="/", mount=tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    own = own_group(proc(tmp_path, "3:cpuset:/\n1:cpu,cpuacct:/a/b\n0::/x\n", mounts))
    assert own == OwnGroup(1, tmp_path, tmp_path / "a" / "b")
    assert own.parents == [tmp_path / "a" / "b"]


def test_under_version_2_groups_further_up_are_tried_too(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    own = own_group(proc(tmp_path, "0::/a/b\n", V2.format(root="/", mount=tmp_path)))
    assert own.version == 2
    assert own.parents == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]


def test_a_container_sees_its_own_part_of_the_hierarchy(tmp_path):
    (tmp_path / "inner").mkdir()
    mounts = V1.format(root="/docker/1234", mount=tmp_path)
    inside = own_group(proc(tmp_path, "1:cpu:/docker/1234/inner\n", mounts))
    assert inside.folder == tmp_path / "inner"
    outside = own_group(proc(tmp_path, "1:cpu:/elsewhere\n", mounts))
    assert outside.folder == tmp_path


def test_without_a_cpu_controller_there_is_no_group(tmp_path):
    with pytest.raises(OSError, match="no cgroup hierarchy with the cpu controller"):
        own_group(proc(tmp_path, "3:cpuset:/\n", ""))


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, (10_000, 20_000)), (2.4, (48_000, 20_000)), (0.01, (1_000, 100_000))]
)
def test_a_quota_is_a_part_of_a_period_and_no_less_than_linux_takes(share, expected):
    assert quota(share) == expected


def test_version_2_makes_the_group_where_the_controller_is_passed_on(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "cgroup.subtree_control").write_text("memory\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpuset cpu memory\n")
    folder = make_group(OwnGroup(2, tmp_path, inner), "rank0", 0.25)
    assert folder == tmp_path / "rank0"
    assert (folder / "cpu.max").read_text() == "5000 20000"


def test_where_no_group_may_be_made_the_reason_is_named(tmp_path, monkeypatch):
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    monkeypatch.setattr(cgroup, "own_group", lambda: OwnGroup(2, tmp_path, tmp_path))
    with pytest.raises(UserError, match=r"cpu_quota cannot make .*not passed on.*cpu_pacing needs neither"):
        with quota_groups([50, 100], cores=1):
            pass


@pytest.mark.usefixtures("permitted")
def test_a_rank_gets_its_quota_of_each_period_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr("ringexp.hetero.cpu_quota.cores_per_rank", lambda world_size: 1)
    with host_throttle("cpu_quota", [25, 100], tmp_path) as envs:
        folder = Path(envs[0][GROUP_ENV])
        assert envs[1] == {}
        burn = subprocess.Popen([sys.executable, "-c", BURN, str(folder)])
        assert burn.wait(timeout=60) == 0
        counters = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    assert not folder.exists()
    assert int(counters["nr_throttled"]) > 0
    used_a_period = 0.3 / int(counters["nr_periods"])  # s of CPU time
    assert 0.25 <= used_a_period / (0.25 * 0.02) <= 1.5


@pytest.mark.usefixtures("permitted")
def test_a_process_that_leaves_is_back_where_it_was(tmp_path):
    before = own_group()
    with quota_groups([50], cores=1) as (folder,), member_of(folder):
        assert own_group().folder == folder
    assert own_group() == before


@pytest.mark.usefixtures("permitted")
def test_groups_do_not_outlive_a_killed_launcher(tmp_path):
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    folder = Path(launcher.stdout.readline().strip())
    assert folder.is_dir()
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    launcher.stdout.close()
    deadline = time.monotonic() + 15
    while folder.exists():
        assert time.monotonic() < deadline, "the group outlived its launcher"
        time.sleep(0.05)


@pytest.mark.usefixtures("permitted")
def test_a_group_that_cannot_be_joined_is_named(tmp_path):
    with pytest.raises(UserError, match=r"may not be moved to .*use hetero.throttle=cpu_pacing"):
        with member_of(tmp_path / "gone"):
            pass
