"""Which of several ranks' errors is the one to tell of."""

from types import SimpleNamespace
from typing import Any

import pytest

from ringexp.errors import RunFailed, UserError
from ringexp.launch.local import _explain
from ringexp.launch.supervision import earliest_error
from ringexp.worker.rank_error import write_error

REFUSED = ("UserError", "give it more memory", 3.0)
KILLED = ("RunFailed", "rank 1 was killed", 4.0)
FIRST = ("RuntimeError", "no such kernel", 1.0)
LATER = ("RuntimeError", "Connection closed by peer", 2.0)
VICTIM = ("RuntimeError", "Read error [127.0.0.1]:5: Connection reset by peer", 0.5)
TOLD = ("PeerFailed", "rank 1 failed: RuntimeError: no such kernel", 0.5)
FIRST_LATE = ("RuntimeError", "no such kernel", 1.0)


@pytest.mark.parametrize(
    ("told", "kind", "message"),
    [
        ([LATER, FIRST], RunFailed, "rank 1 failed: RuntimeError: no such kernel; traceback in log 1"),
        ([FIRST, KILLED], RunFailed, "rank 1 was killed"),
        ([FIRST, REFUSED], UserError, "give it more memory"),
        ([KILLED, REFUSED], UserError, "give it more memory"),
        ([VICTIM, FIRST_LATE], RunFailed, "rank 1 failed: RuntimeError: no such kernel; traceback in log 1"),
        ([TOLD, FIRST_LATE], RunFailed, "rank 1 failed: RuntimeError: no such kernel; traceback in log 1"),
    ],
    ids=[
        "the earliest",
        "one that died",
        "one that refused",
        "one that refused, whose peer died of it",
        "not an earlier victim",
        "not one that was told",
    ],
)
def test_the_cause_is_told_and_not_what_followed_from_it(tmp_path, told, kind, message):
    for rank, (name, text, time_s) in enumerate(told):
        write_error(tmp_path / "rank_set.json", rank, name, text, time_s)
    error = earliest_error(tmp_path / "rank_set.json", [0, 1], {0: "log 0", 1: "log 1"})
    assert (type(error), str(error)) == (kind, message)


def test_without_errors_there_is_none(tmp_path):
    assert earliest_error(tmp_path / "rank_set.json", [0, 1], {}) is None


@pytest.mark.parametrize("said", [VICTIM, TOLD, ("DistBackendError", "NCCL: remote process exited", 1.0)])
def test_a_victim_is_told_of_only_where_nobody_else_is(tmp_path, said):
    path = tmp_path / "rank_set.json"
    write_error(path, 0, *said)
    assert earliest_error(path, [0, 1], {0: "log 0"}, victims=False) is None
    assert said[1] in str(earliest_error(path, [0, 1], {0: "log 0"}))


def test_ranks_that_left_in_silence_are_blamed_before_victims(tmp_path):
    """A library that ends the process leaves an exit code and no exception."""
    path = tmp_path / "rank_set.json"
    write_error(path, 0, *VICTIM)
    processes: Any = SimpleNamespace(stderrs={0: "log 0", 1: "log 1"}, pids=lambda: {0: 10, 1: 11})
    assert str(_explain(processes, path, {0: 1, 1: 3})).startswith("rank 1 ended with exit code 3")
    assert "rank 1 was killed by SIGSEGV (pid 11)" in str(_explain(processes, path, {0: 1, 1: -11}))
    assert "rank 0 failed: RuntimeError: Read error" in str(_explain(processes, path, {0: 1}))
