"""A results.json is believed if it has every figure, each of its type."""

import pytest

from ringexp.tracking.schema import check_complete, check_results
from support.results import whole_results


def test_a_whole_result_is_believed():
    results = whole_results()
    assert check_complete(results) == results


def test_what_has_not_ended_well_is_no_result_and_no_damage():
    for other in ({"status": "failed", "reason": "x"}, {"status": "planned"}, whole_results(exact=False)):
        assert check_complete(other) is None


def test_a_figure_may_be_null_only_if_it_was_not_finite():
    with pytest.raises(ValueError, match="tflops"):
        check_complete(whole_results(tflops=None))
    assert check_complete(whole_results(tflops=None, not_finite={"tflops": "inf"}))


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
        check_complete(whole_results(**figures))


def test_a_missing_figure_is_damage():
    results = whole_results()
    del results["busy_ms"]
    with pytest.raises(ValueError, match="busy_ms is missing"):
        check_complete(results)


@pytest.mark.parametrize("content", [[], None, "complete", {}, {"status": "done"}, {"status": None}], ids=str)
def test_another_content_is_no_results_file(content):
    with pytest.raises(ValueError, match=r"is none of planned|is no object"):
        check_results(content)
