"""A results.json is believed if it has every figure, each of its type."""

import pytest

from ringexp.tracking.results import RunRecord
from ringexp.tracking.schema import complete_record
from support.results import whole_results


def test_a_whole_result_is_believed():
    results = whole_results()
    assert complete_record(results).content == results


def test_what_has_not_ended_well_is_no_result_and_no_damage():
    for other in ({"status": "failed", "reason": "x"}, {"status": "planned"}, whole_results(exact=False)):
        assert complete_record(other) is None


def test_a_figure_may_be_null_only_if_it_was_not_finite():
    with pytest.raises(ValueError, match="tflops"):
        complete_record(whole_results(tflops=None))
    assert complete_record(whole_results(tflops=None, not_finite={"tflops": "inf"}))


@pytest.mark.parametrize(
    "figures",
    [
        {"latency_ms_median": -1.0},
        {"latency_ms_median": "2"},
        {"latency_ms_median": True},
        {"latency_ms_iterations": [1.0, "2"]},
        {"tokens": [1.5, 2]},
        {"throttle": None},
        {"references": [1]},
        {"decode": 3},
        {"settled_iterations": 2.5},
    ],
    ids=str,
)
def test_a_figure_of_another_type_is_damage(figures):
    (name,) = figures
    with pytest.raises(ValueError, match=name):
        complete_record(whole_results(**figures))


def test_a_missing_figure_is_damage():
    results = whole_results()
    del results["busy_ms"]
    with pytest.raises(ValueError, match="busy_ms is missing"):
        complete_record(results)


@pytest.mark.parametrize("content", [[], None, "complete", {}, {"status": "done"}, {"status": None}], ids=str)
def test_another_content_is_no_results_file(content):
    with pytest.raises(ValueError, match=r"is none of planned|is no object"):
        RunRecord.from_json(content)
