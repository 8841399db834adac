"""Which of several ranks' errors is the one to tell of."""

import pytest

from ringexp.errors import RunFailed, UserError
from ringexp.launch.rank import write_error
from ringexp.launch.supervision import earliest_error

REFUSED = ("UserError", "give it more memory", 3.0)
KILLED = ("RunFailed", "rank 1 was killed", 4.0)
FIRST = ("RuntimeError", "no such kernel", 1.0)
LATER = ("RuntimeError", "Connection closed by peer", 2.0)


@pytest.mark.parametrize(
    ("told", "kind", "message"),
    [
        ([LATER, FIRST], RunFailed, "rank 1 failed: RuntimeError: no such kernel; traceback in log 1"),
        ([FIRST, KILLED], RunFailed, "rank 1 was killed"),
        ([FIRST, REFUSED], UserError, "give it more memory"),
        ([KILLED, REFUSED], UserError, "give it more memory"),
    ],
    ids=["the earliest", "one that died", "one that refused", "one that refused, whose peer died of it"],
)
def test_the_cause_is_told_and_not_what_followed_from_it(tmp_path, told, kind, message):
    for rank, (name, text, time_s) in enumerate(told):
        write_error(tmp_path / "rank_set.json", rank, name, text, time_s)
    error = earliest_error(tmp_path / "rank_set.json", [0, 1], {0: "log 0", 1: "log 1"})
    assert (type(error), str(error)) == (kind, message)


def test_without_errors_there_is_none(tmp_path):
    assert earliest_error(tmp_path / "rank_set.json", [0, 1], {}) is None
