"""The files that a tracker leaves behind when a run ends, and when something interrupts the run."""

import pytest

from ringexp.config import AttentionModelConfig, Config, TrackerConfig
from ringexp.errors import Interrupted
from ringexp.tracking.environment import environment
from ringexp.tracking.schema import SCHEMA_VERSION, described
from ringexp.tracking.tracker import Tracker
from support.results import read_content, whole_result

CONFIG = Config(model=AttentionModelConfig(name="tiny"), tracker=TrackerConfig("disabled"), seq_len=128)
WHAT = described(CONFIG, "abc-def", environment({"device": "cpu"}, ["python -m ringexp", "label=a b"]))


@pytest.fixture
def tracker(tmp_path) -> Tracker:
    return Tracker(tmp_path, CONFIG, pytest.fail, WHAT)


@pytest.mark.parametrize(
    "error", [Interrupted("asked to end (SIGTERM)"), OSError(28, "full"), ValueError("bug")]
)
def test_what_comes_after_the_results_takes_nothing_back(tmp_path, tracker, error):
    tracker.planned({"tokens": [64, 64]})
    tracker.finish(whole_result())
    before = read_content(tmp_path)
    tracker.fail(error)
    assert read_content(tmp_path) == before
    assert (before["status"], before["latency_ms_median"]) == ("complete", 2.5)


def test_a_signal_while_results_are_written_takes_nothing_back(tmp_path, tracker, monkeypatch):
    def interrupted(*_):
        raise Interrupted("asked to end (SIGTERM)")

    write = tracker._files.write_results
    monkeypatch.setattr(tracker._files, "write_results", lambda *what: (write(*what), interrupted()))
    with pytest.raises(Interrupted) as signal:
        tracker.finish(whole_result())
    monkeypatch.undo()
    tracker.fail(signal.value)
    assert read_content(tmp_path)["status"] == "complete"


def test_a_wrong_output_is_a_failure_with_all_figures(tmp_path, tracker):
    tracker.finish(
        whole_result(exact=False, why_inexact="the output is off by 3", error_max_abs=float("nan"))
    )
    results = read_content(tmp_path)
    assert (results["status"], results["reason"]) == ("failed", "the output is off by 3")
    assert results["latency_ms_median"] == 2.5
    assert results["not_finite"] == {"error_max_abs": "nan"}
    tracker.fail(Interrupted("asked to end (SIGTERM)"))
    assert read_content(tmp_path) == results


def test_every_status_says_what_the_run_was(tmp_path, tracker):
    tracker.planned({"tokens": [64, 64]})
    planned = read_content(tmp_path)
    tracker.fail(ValueError("bug"))
    failed = read_content(tmp_path)
    for results, status in ((planned, "planned"), (failed, "failed")):
        assert results["status"] == status
        assert results["schema_version"] == SCHEMA_VERSION
        assert (results["key"], results["model"], results["seq_len"]) == ("abc-def", "tiny", 128)
        assert (results["partitioner"], results["layout"], results["split"]) == ("lut", "zigzag", "tokens")
        assert (results["percentages"], results["kernel"]) == ([100.0, 100.0], "auto")
        assert results["command"] == "python -m ringexp 'label=a b'"
        assert results["versions"]["torch"]
        assert results["shape"].startswith("attention-b1-e4096")
    assert (failed["tokens"], failed["reason"]) == ([64, 64], "ValueError: bug")


def test_a_complete_run_has_the_kernel_that_ran(tmp_path, tracker):
    tracker.finish(whole_result(kernel="sdpa"))
    assert read_content(tmp_path)["kernel"] == "sdpa"
