"""Triton's interpreter in a process of its own.

TRITON_INTERPRET has to be set before triton is first imported and then holds for the whole process and its
children. So that it touches no other test, the interpreted cases run in one spawned worker.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from kernels import cases


@pytest.fixture(scope="session")
def in_interpreter() -> Iterator[Callable[..., Any]]:
    """call(function, *args): run a function of an importable module where Triton is interpreted."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=cases.interpret_triton) as pool:
        lacks = pool.submit(cases.interpreter_lacks).result()
        if lacks:
            pytest.skip(f"the Triton kernel needs {lacks}")
        yield lambda function, *args: pool.submit(function, *args).result()
