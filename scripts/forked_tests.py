"""Tests in forked processes, so that a run costs no imports: what `scripts/mutate.py` runs mutants by."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def prepare(tree: Path, preload: Sequence[str]) -> None:
    """Make this process one that tests can be forked from."""
    sys.dont_write_bytecode = True  # a mutant may be as long as the one before, and made in the same second
    os.environ.update(
        PYTHONPATH=os.pathsep.join([str(tree / "src"), str(tree / "tests")]),
        OMP_NUM_THREADS="1",
        PYTHONDONTWRITEBYTECODE="1",
    )
    sys.path[:0] = [str(tree / "src")]
    os.chdir(tree)
    import importlib

    import numpy  # noqa: F401
    import pytest  # noqa: F401
    from hypothesis import HealthCheck, Phase, settings

    settings.register_profile(
        "mutation",
        database=None,
        deadline=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutation")
    for name in preload:
        module = importlib.import_module(name)
        if name == "torch":
            module.set_num_threads(1)
    assert "ringexp" not in sys.modules, "every forked process has to import it anew"


class Watch:
    """A pytest plugin that keeps the asked tests in the asked order, and notes what happens.

    order: test ids; None: all, and what they call is noted as well.
    """

    def __init__(self, tree: Path, order: list[str] | None) -> None:
        self.tree, self.order = tree, order
        self.failed = ""
        self.timeout = False
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, list[str]] = {}
        self.ranks: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.order is not None:
            place = {test: number for number, test in enumerate(self.order)}
            items[:] = sorted(
                (item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid]
            )
        self.ranks = [item.nodeid for item in items if "pools" in item.fixturenames]

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid
            self.timeout = "Timeout (>" in str(report.longrepr)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = f"collecting {report.nodeid}"

    def pytest_runtest_setup(self, item: Any) -> None:
        if self.order is None:
            for module in [module for name, module in sys.modules.items() if name.startswith("ringexp")]:
                for value in vars(module).values():
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()
            seen: set[tuple[str, int]] = set()

            def note(frame: Any, event: str, argument: object) -> None:
                seen.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

            item.stash_seen = seen
            threading.settrace(note)
            sys.settrace(note)

    def pytest_runtest_teardown(self, item: Any) -> None:
        if self.order is None:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            source = f"{self.tree}{os.sep}"
            self.calls[item.nodeid] = sorted(
                f"{path.removeprefix(source)}:{line}"
                for path, line in item.stash_seen
                if path.startswith(f"{source}src")
            )


def run_tests(
    tree: Path, files: Sequence[str], order: list[str] | None, test_s: int, limit_s: float
) -> dict[str, Any]:
    """Run tests in a forked process; returns what `Watch` noted, or {"outcome": "timeout"}.

    Args:
        tree: The tree that `prepare` was called for.
        files: Test files, relative to it.
        order: The ids of the tests to run, in this order. None: all, and what they call is noted.
        test_s: The longest that one test may take.
        limit_s: The longest that all of them may take.
    """
    reading, writing = os.pipe()
    scratch = tree.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    child = os.fork()
    if not child:
        os.setsid()
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
        with open(tree.parent / "last_output.txt", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        noted = test_process(tree, files, order, test_s)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(json.dumps(noted) + "\n")
        os._exit(0)
    os.close(writing)
    killer = threading.Timer(limit_s, os.killpg, (child, signal.SIGKILL))
    killer.start()
    try:
        with os.fdopen(reading) as pipe:
            text = pipe.readline()
    finally:
        killer.cancel()
        killer.join()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # also ranks that a test left behind
    os.waitpid(child, 0)
    shutil.rmtree(scratch, ignore_errors=True)
    return json.loads(text) if text else {"outcome": "timeout"}


def test_process(tree: Path, files: Sequence[str], order: list[str] | None, test_s: int) -> dict[str, Any]:
    """What happens in the forked process. Ranks of test pools are forked, too, so they start at once."""
    import multiprocessing

    import pytest

    of_kind = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: of_kind("fork")  # type: ignore[assignment]
    watch = Watch(tree, order)
    limit = f"--timeout={test_s}"
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", limit, *files], plugins=[watch])
    outcome = {0: "survived", 1: "killed"}.get(int(code), "killed" if watch.failed else f"exit code {code}")
    outcome = "timeout" if watch.timeout else outcome
    return {
        "outcome": outcome,
        "test": watch.failed,
        "seconds": watch.seconds,
        "calls": watch.calls,
        "ranks": watch.ranks,
    }
