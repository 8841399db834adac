"""What nvidia-smi says of GPUs, read."""

import pytest

from ringexp.machine import all_ok

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
