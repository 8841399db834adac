"""The status of a run, whoever writes it: complete is final."""

import csv
import json
import resource
import stat

import pytest

from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.tracking.files import RunFiles, begin, mark_ended, write_status
from ringexp.tracking.results import Prompt
from support.results import read_content


def test_complete_is_final(tmp_path):
    assert write_status(tmp_path, "planned", {"tokens": [1, 1]})
    assert write_status(tmp_path, "complete", {"latency_ms_median": 2.0})
    assert not write_status(tmp_path, "interrupted", {"reason": "SIGTERM"})
    for overrule in (False, True):
        mark_ended(tmp_path, "failed", "a rank was killed", overrule)
    assert read_content(tmp_path) == {"status": "complete", "latency_ms_median": 2.0}


def test_a_run_that_has_failed_is_overruled_only_by_who_saw_all_ranks(tmp_path):
    write_status(tmp_path, "failed", {"reason": "connection reset", "tokens": [1, 1]})
    mark_ended(tmp_path, "interrupted", "Ctrl-C")
    assert read_content(tmp_path)["reason"] == "connection reset"
    mark_ended(tmp_path, "failed", "rank 1 was killed", overrule=True)
    assert read_content(tmp_path) == {"status": "failed", "reason": "rank 1 was killed", "tokens": [1, 1]}


def test_a_new_run_keeps_what_was_complete_there(tmp_path):
    write_status(tmp_path, "complete", {"latency_ms_median": 2.0})
    (tmp_path / "trace.json").write_text("{}")
    begin(tmp_path)
    assert read_content(tmp_path) is None
    assert json.loads((tmp_path / "results.previous.json").read_text())["latency_ms_median"] == 2.0
    assert not (tmp_path / "trace.json").exists()  # it would be taken for the new run's
    assert write_status(tmp_path, "planned", {})


def test_what_an_interrupted_run_has_measured_stays_for_the_next_attempt(tmp_path):
    write_status(tmp_path, "interrupted", {"latency_ms_iterations": [1.0]})
    begin(tmp_path)
    assert read_content(tmp_path)["latency_ms_iterations"] == [1.0]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"status": 3}', b'{"a": "\xff"}', b'{"a": NaN}'], ids=str
)
def test_damaged_results_are_none_and_set_aside_by_who_writes(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    assert read_content(tmp_path) is None
    assert path.read_bytes() == content
    mark_ended(tmp_path, "interrupted", "Ctrl-C")
    assert read_content(tmp_path) == {"status": "interrupted", "reason": "Ctrl-C"}
    assert (tmp_path / "results.json.damaged").read_bytes() == content


def test_results_are_strict_json_that_others_may_read(tmp_path):
    write_status(tmp_path, "complete", {"error_max_abs": float("nan"), "busy_ms": [1.0, float("inf")]})
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert (results["error_max_abs"], results["busy_ms"]) == (None, [1.0, None])
    assert results["not_finite"] == {"error_max_abs": "nan", "busy_ms.1": "inf"}
    assert stat.S_IMODE((tmp_path / "results.json").stat().st_mode) & 0o600 == 0o600


TIMINGS = [
    IterationTiming(8.0, 6.0, [HopTiming(0, 0.0, 4.0), HopTiming(1, 2.0, 1.0, 3.0, 0.5)], [1.0]),
    IterationTiming(10.0, 2.0),
]
PROMPT = Prompt([50.0, 100.0], [3, 7], [1.0, 2.0], [1.0, 2.0], 0.75, 0.0)


def rows_of(run_dir, name):
    with (run_dir / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_iteration_is_in_the_tables_at_once(tmp_path):
    files = RunFiles(tmp_path, {})
    files.add_iteration(5, TIMINGS, PROMPT)
    slow, fast = rows_of(tmp_path, "iterations.csv")  # before they are closed: a run may be killed
    assert [slow[name] for name in ("iteration", "rank", "latency_ms", "busy_ms")] == ["5", "0", "10", "6"]
    assert [fast[name] for name in ("rank", "comm_ms", "idle_ms", "tokens")] == ["1", "0", "8", "7"]
    (layer,) = rows_of(tmp_path, "layers.csv")
    assert [layer[name] for name in ("linear_ms", "attention_ms", "wait_ms")] == ["1", "5", "2"]
    own, other = rows_of(tmp_path, "hops.csv")
    assert (own["source"], other["source"]) == ("0", "1")
    assert [other[name] for name in ("wait_ms", "compute_ms", "transfer_ms")] == ["2", "1", "3"]
    files.close()


def test_a_line_that_does_not_fit_is_taken_back(tmp_path):
    files = RunFiles(tmp_path, {})
    files.add_iteration(0, TIMINGS, PROMPT)
    table = tmp_path / "iterations.csv"
    before = table.read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match=r"iterations\.csv"):
            files.add_iteration(1, TIMINGS, PROMPT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert table.read_text() == before
    files.add_iteration(2, TIMINGS, PROMPT)
    assert [row["iteration"] for row in rows_of(tmp_path, "iterations.csv")] == ["0", "0", "2", "2"]
    files.close()
