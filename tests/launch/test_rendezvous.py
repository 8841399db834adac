"""The store by which ranks meet: other machines cannot reach it, and its users need the run's secret."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringexp.config import CalibrationConfig, TrackerConfig
from ringexp.configure.resolve import resolve
from ringexp.errors import UserError
from ringexp.launch.supervision import rendezvous, write_rank_set
from ringexp.worker.rank import _keys
from ringexp.worker.rank_error import error_file
from ringexp.worker.rank_place import SECRET_ENV
from ringexp.worker.rank_set import Job, RankSet
from support.command import command
from support.sessions import attention_config
from support.strangers import LOOPBACK, descendants, listening

SUPPORT = Path(__file__).parents[1]


def test_the_store_listens_on_loopback_only():
    before = listening(os.getpid())
    with rendezvous(0) as meeting:
        new = listening(os.getpid())
        for address in before:
            new.remove(address)
        assert len(new) == 1
        assert set(new) <= LOOPBACK
        assert meeting["MASTER_ADDR"] == "127.0.0.1"
        assert meeting["GLOO_SOCKET_IFNAME"] == meeting["NCCL_SOCKET_IFNAME"] == "lo"
    assert listening(os.getpid()) == before


def test_on_a_network_ranks_find_the_address_themselves():
    with rendezvous(0, on_network=True) as meeting:
        assert not {"MASTER_ADDR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} & set(meeting)
        assert set(listening(os.getpid())) - LOOPBACK


def test_without_ipv4_loopback_ranks_meet_over_ipv6(monkeypatch):
    create = socket.create_server

    def only_ipv6(address, **how):
        if how["family"] == socket.AF_INET:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return create(address, **how)

    monkeypatch.setattr(socket, "create_server", only_ipv6)
    try:
        create(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with rendezvous(0) as meeting:
        assert meeting["MASTER_ADDR"] == "::1"
        assert "NCCL_SOCKET_IFNAME" not in meeting  # it takes no IPv6 address there


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"launch.port={port} cannot be used: .*use launch.port=0"):
            with rendezvous(port):
                pass


def test_every_start_has_a_secret_of_its_own():
    with rendezvous(0) as one, rendezvous(0) as other:
        assert one[SECRET_ENV] != other[SECRET_ENV]
        assert len(bytes.fromhex(one[SECRET_ENV])) == 32


def test_names_in_the_store_give_no_secret_away():
    name, key = _keys("secret")
    assert "secret" not in name
    assert bytes.fromhex(name) != key


def test_launcher_and_ranks_listen_on_loopback_only(tmp_path):
    """Whatever interface a cluster's profile names for gloo."""
    settings = ("model=attention_tiny", "device=cpu", "seq_len=256", "repeats=100000", "references=false")
    process = subprocess.Popen(
        command(*settings, "partitioner=even", root=tmp_path),
        env=os.environ | {"GLOO_SOCKET_IFNAME": "nowhere0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while not any(file.read_text().count("\n") > 4 for file in tmp_path.glob("runs/*/*/iterations.csv")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ours = [process.pid, *descendants(process.pid)]
        addresses = {pid: listening(pid) for pid in ours}
        assert sum(map(len, addresses.values())) >= 3  # the store, and gloo of two ranks
        assert {address for found in addresses.values() for address in found} <= LOOPBACK
    finally:
        process.terminate()
        process.wait(30)


def rank_set_of_two(root: Path) -> Path:
    config = attention_config(root, "none", 2, seq_len=256)
    config.tracker, config.calibration = TrackerConfig("disabled"), CalibrationConfig(min_seconds=0.02)
    config.launch.timeout_s = 20.0
    jobs = [Job(resolve(config, num_gpus=0), "run", root / "run")]
    return write_rank_set(RankSet("cpu", "none", "gloo", [100.0, 100.0], 1, {}, [], jobs=jobs), root)


def test_a_stranger_in_a_ranks_place_runs_no_code(tmp_path):
    """It knows the port, reads the store's names and joins as rank 1 with pickles for rank 0."""
    path, trap = rank_set_of_two(tmp_path), tmp_path / "trap"
    with rendezvous(0) as meeting:
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "RINGEXP_CPU_THREADS": "1"}
        rank = subprocess.Popen(
            [sys.executable, "-m", "ringexp.worker.rank", str(path)],
            env=os.environ | meeting | place,
            stderr=subprocess.DEVNULL,
        )
        stranger = subprocess.Popen(
            [sys.executable, "-m", "support.strangers", meeting["MASTER_PORT"], "1", "2", str(trap)],
            env=os.environ
            | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": f"{SUPPORT}:{os.environ.get('PYTHONPATH', '')}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert rank.wait(60) == 1
        finally:
            rank.kill()
            stranger.kill()
            said, _ = stranger.communicate()
    assert said.strip() == "joined"
    error = json.loads(error_file(path, 0).read_text())
    assert error["type"] == "RunFailed"
    assert error["message"].startswith("rank 1 sent a message without this run's secret: another process")
    assert not trap.exists()
    assert not (tmp_path / "run" / "results.json").exists()
