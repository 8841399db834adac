"""torch.compile around whatever talks to other ranks: the graph breaks there, and the result is the same."""

import subprocess
import sys

import pytest
import torch

from support.compile_ranks import FUNCTIONS, compiled


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_functions_give_what_they_give_uncompiled(pools, name):
    for wanted, found in pools[2].run(compiled, name):
        same = torch.equal(wanted, found) if isinstance(wanted, torch.Tensor) else wanted == found
        assert same


def test_the_ring_does_not_import_the_compiler():
    code = """
import sys, torch, ringexp
q = torch.zeros(1, 8, 2, 16)
ringexp.ring_attention(q, q, q, ringexp.plan([1.0], 8))
assert "torch._dynamo" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
