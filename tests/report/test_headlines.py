"""Headlines on runs whose answers are known by hand."""

import pytest

from ringexp.report.frame import contexts, load_runs
from ringexp.report.headlines import headlines
from support.run_folders import write_run


@pytest.fixture
def found(tmp_path):
    """Two profiles at 16,384 tokens; every ratio below can be checked in the head."""

    def run(number, slow, layout, partitioner, latency_ms, **more):
        write_run(
            tmp_path,
            number,
            percentages=(100, slow),
            seq_len=16384,
            layout=layout,
            partitioner=partitioner,
            latency_ms=latency_ms,
            **more,
        )

    run(0, 50, "contiguous", "even", 20.0, latency_ms_predicted=21.0)
    run(1, 50, "zigzag", "even", 16.0, latency_ms_predicted=16.0)
    run(2, 50, "zigzag", "lut", 11.0, latency_ms_predicted=11.0)
    run(
        3,
        50,
        "zigzag",
        "balanced",
        10.0,
        latency_ms_predicted=9.0,
        capacity_efficiency=0.9,
        speedup_over_even=1.6,
        references={"single_ms": 15.0},
    )
    run(4, 10, "contiguous", "even", 80.0, latency_ms_predicted=80.0)
    run(5, 10, "zigzag", "lut", 8.0, latency_ms_predicted=8.0, tokens=[16384, 0])
    run(
        6,
        10,
        "zigzag",
        "balanced",
        16.0,
        latency_ms_predicted=16.0,
        latency_ms_back_to_back=32.0,
        capacity_efficiency=0.7,
        speedup_over_even=0.9,
        references={"single_ms": 12.0},
    )
    run(7, 50, "zigzag", "lut", 32.0, shard="kv", latency_ms_predicted=None)
    ((_, group),) = contexts(load_runs([tmp_path]))
    return {line.name: line for line in headlines(group)}


def test_the_best_speedup_is_over_contiguous_even(found):
    best = found["Best speedup over contiguous even"]
    assert (best.value, best.text) == (10.0, "10.00x")
    assert best.detail == "lut, zigzag, ranks at 100/10 %, 16384 tokens: 5_lut_zigzag_16384"
    assert found["Best speedup over contiguous even at 50 %"].value == 2.0


def test_capacity_efficiency_is_the_median_with_its_lowest_run(found):
    isolated = found["Capacity efficiency of balanced, zigzag, isolated"]
    assert isolated.value == pytest.approx(0.8)
    assert "median of 2 runs of 16384 tokens and more; lowest 0.700" in isolated.detail
    assert "6_balanced_zigzag" in isolated.detail
    assert found["Capacity efficiency of balanced, zigzag, back to back"].value == pytest.approx(
        (0.9 + 0.35) / 2
    )


def test_the_worst_cases_of_the_recommended_setting(found):
    assert found["Worst case of balanced, zigzag against contiguous even"].value == 2.0
    assert found["Worst case of balanced, zigzag against zigzag even"].value == 0.9
    alone = found["Worst case of balanced, zigzag against the fastest device alone"]
    assert (alone.value, "6_balanced" in alone.detail) == (0.75, True)


def test_lut_is_compared_with_balanced_and_its_empty_ranks_are_counted(found):
    lut = found["lut against balanced, zigzag, at its worst"]
    assert lut.value == pytest.approx(0.1)
    assert "2_lut_zigzag" in lut.detail
    assert lut.detail.endswith("empty rank: 1")
    assert "formula against balanced, zigzag, at its worst" not in found


def test_the_prediction_error_is_the_median_of_absolute_errors(found):
    prediction = found["Predicted against measured latency"]
    assert prediction.value == 0.0  # 0.05, 0.1 and five times 0
    assert "of 7 runs; largest -10.0 %: balanced" in prediction.detail


def test_splitting_keys_and_values_only_is_against_even_of_its_layout(found):
    assert found["Best of splitting keys/values only, over even of its layout"].value == 0.5


def test_runs_without_a_baseline_have_no_headline_about_it(tmp_path):
    write_run(tmp_path, without=("latency_ms_predicted", "capacity_efficiency", "error_max_abs"))
    ((_, group),) = contexts(load_runs([tmp_path]))
    assert headlines(group) == []
