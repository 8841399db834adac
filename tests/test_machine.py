"""What nvidia-smi says of GPUs, read, and what ranks get of one."""

import pytest

from ringexp.machine import all_ok, hardware_queues, memory_bytes

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


def test_the_memory_of_this_machine_is_known():
    told = memory_bytes()
    assert told
    assert 2**28 < told < 2**50
