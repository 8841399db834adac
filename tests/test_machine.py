"""The GPUs as nvidia-smi lists them, and the share of one GPU that ranks get."""

import os

import pytest

from ringexp.machine import all_ok, hardware_queues, memory_bytes, visible_entries, visible_gpus

TWO = " \t\x1b[4mGPU0\tGPU1\t\x1b[0m\n GPU0\tX\tOK\t\n GPU1\t{}\tX\t\n\nLegend:\n\n  OK   = Status Ok\n"


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        (TWO.format("OK"), True),
        (TWO.format("CNS"), False),
        (" \tGPU0\t\n GPU0\tX\t\n", True),
        ("No devices were found", False),
        ("", False),
    ],
)
def test_whether_gpus_reach_each_other(told, answer):
    assert all_ok(told) is answer


@pytest.mark.parametrize(("ranks", "queues"), [(1, 32), (2, 32), (3, 21), (4, 16), (100, 1)])
def test_ranks_of_a_gpu_share_its_queues(ranks, queues):
    assert hardware_queues(ranks) == queues


SMI = """#!/bin/sh
case "$*" in
  *--query-gpu=index,uuid,name*)
    echo '2, GPU-cc-3, NVIDIA H100'
    echo '0, GPU-aa-1, NVIDIA H200'
    echo '1, GPU-ab-2, NVIDIA L40' ;;
  -L)
    echo 'GPU 0: NVIDIA H200 (UUID: GPU-aa-1)'
    echo '  MIG 1g.18gb     Device  0: (UUID: MIG-1)'
    echo '  MIG 2g.35gb     Device  1: (UUID: MIG-2)' ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-aa-1", "GPU-ab-2", "GPU-cc-3"]),
        ("", []),
        ("-1", []),
        ("1", ["GPU-ab-2"]),
        ("2,0", ["GPU-cc-3", "GPU-aa-1"]),
        (" 2 , 1", ["GPU-cc-3", "GPU-ab-2"]),
        ("0,7,1", ["GPU-aa-1"]),
        ("0,-1,1", ["GPU-aa-1"]),
        ("0,no,1", ["GPU-aa-1"]),
        ("0,0", []),
        ("GPU-cc", ["GPU-cc-3"]),
        ("GPU-a", []),
        ("GPU-ab,GPU-aa-1", ["GPU-ab-2", "GPU-aa-1"]),
        ("GPU-cc,GPU-zz,GPU-aa", ["GPU-cc-3"]),
        ("GPU-cc,GPU-cc-3", []),
        ("MIG-2", ["MIG-2"]),
    ],
)
def test_the_visible_gpus_are_those_that_cuda_would_see(smi, monkeypatch, visible, uuids):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.uuid for gpu in visible_gpus()] == uuids


def test_a_mig_part_is_named_after_its_gpu_and_size(smi, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert [gpu.name for gpu in visible_gpus()] == ["NVIDIA H200 MIG 1g.18gb"]


@pytest.mark.parametrize(
    ("visible", "entries"),
    [("1gpu2,2ampere", [1, 2]), ("+1", [1]), ("GPU-a,1", ["GPU-a"]), ("1,GPU-a", [1]), (",1", [])],
)
def test_entries_are_read_as_cuda_reads_them(monkeypatch, visible, entries):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_entries() == entries


def test_the_memory_of_this_machine_is_known():
    told = memory_bytes()
    assert told
    assert 2**28 < told < 2**50
