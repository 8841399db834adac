"""Every figure draws the data it is given; what is checked is the artists' data, not pixels."""

import numpy as np
import pytest

from ringexp.calibration.rows import SpeedRow
from ringexp.hetero.drift import DriftConfig
from ringexp.report.figures import FIGURES, adaptation, comparisons, curves, style, timeline
from ringexp.report.figures.calibration import calibration_curves
from ringexp.report.frame import contexts, load_runs
from ringexp.report.headlines import headlines
from ringexp.tracking.results import Prompt
from support.run_folders import two_rank_iteration, write_iterations, write_run

PERCENTS, LENGTHS = (10, 50, 100), (4096, 16384)


def latency(slow: int, length: int, layout: str, partitioner: str) -> float:
    """A number that differs from cell to cell."""
    return length / 1024 + 100 / slow + {"contiguous": 2.0, "zigzag": 0.0}[layout] + len(partitioner)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three profiles, two lengths, two layouts, two partitioners and split=kv, all cells filled."""
    folder = tmp_path_factory.mktemp("sweep")
    number = 0
    for slow in PERCENTS:
        for length in LENGTHS:
            for layout in ("contiguous", "zigzag"):
                for partitioner in ("even", "balanced"):
                    value = latency(slow, length, layout, partitioner)
                    made = write_run(
                        folder,
                        number,
                        percentages=(100, slow),
                        seq_len=length,
                        layout=layout,
                        partitioner=partitioner,
                        latency_ms=value,
                        latency_ms_predicted=1.02 * value,
                        capacity_efficiency=5.0 / value,
                        slowdown=value / 2,
                        shares=[0.7, 0.3],
                        speeds=[300.0, 100.0],
                    )
                    write_iterations(made, [two_rank_iteration(value + extra) for extra in (0.0, 9.0, 1.0)])
                    number += 1
            write_run(
                folder,
                number,
                percentages=(100, slow),
                seq_len=length,
                shard="kv",
                latency_ms=50.0,
                latency_ms_predicted=None,
            )
            number += 1
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    ((_, group),) = contexts(load_runs([folder]))
    return group


def lines(axis) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axis.lines
        if not line.get_label().startswith("_")
    }


@pytest.mark.parametrize("ranks", [2, 16])
@pytest.mark.parametrize("partitioners", [("even",), ("even", "balanced")])
def test_narrow_figures_show_all_of_their_legend(tmp_path, partitioners, ranks):
    for number, partitioner in enumerate(partitioners):
        equal = {"percentages": (100,) * ranks, "shares": [1 / ranks] * ranks, "speeds": [1.0] * ranks}
        write_run(tmp_path, number, seq_len=4096, partitioner=partitioner, latency_ms=1.0, **equal)
    ((_, group),) = contexts(load_runs([tmp_path]))
    figure = comparisons.token_distribution(group)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == ranks + 1
    figure.draw_without_rendering()
    room, shown = figure.bbox, legend.get_window_extent()
    assert room.x0 <= shown.x0 < shown.x1 <= room.x1
    assert room.y0 <= shown.y0
    assert all(axis.get_window_extent().y0 > shown.y1 for axis in figure.axes)


def test_latency_over_the_percentage_has_a_panel_a_length(runs):
    figure = curves.latency_by_percentage(runs)
    assert [axis.get_title() for axis in figure.axes] == ["4k tokens", "16k tokens"]
    drawn = lines(figure.axes[1])
    expected = [latency(slow, 16384, "zigzag", "balanced") for slow in PERCENTS]
    assert drawn["balanced, zigzag"] == (list(PERCENTS), expected)
    assert drawn["lut, zigzag, kv"][1] == [50.0] * 3
    assert drawn["capacity ideal"][1] == pytest.approx([5.0] * 3)


def test_latency_over_the_length_has_a_panel_a_percentage(runs):
    figure = curves.latency_by_length(runs)
    assert [axis.get_title() for axis in figure.axes] == ["slowest rank at 10 %", "slowest rank at 50 %"]
    expected = [latency(50, length, "contiguous", "even") for length in LENGTHS]
    assert lines(figure.axes[1])["even, contiguous"] == (list(LENGTHS), expected)


@pytest.mark.parametrize("draw", [curves.slowdown_by_percentage, curves.slowdown_by_length])
def test_slowdown_is_what_was_measured(runs, draw):
    drawn = lines(draw(runs).axes[0])["even, zigzag"]
    assert drawn[1][0] == latency(10, 4096, "zigzag", "even") / 2


def test_capacity_efficiency_has_the_ideal_at_one(runs):
    for draw in (curves.efficiency_isolated, curves.efficiency_back_to_back):
        for axis, length in zip(draw(runs).axes, LENGTHS, strict=True):
            drawn = lines(axis)
            assert set(drawn["ideal"][1]) == {1.0}
            assert drawn["even, zigzag"][1][0] == pytest.approx(5.0 / latency(10, length, "zigzag", "even"))
            assert axis.get_ylim()[0] == 0


def test_heatmaps_have_a_cell_a_percentage_and_length(runs):
    figure = comparisons.speedup_heatmaps(runs)
    panels = {axis.get_title(): axis.images[0].get_array() for axis in figure.axes if axis.images}
    assert list(panels) == ["even, contiguous", "balanced, contiguous", "even, zigzag", "balanced, zigzag"]
    expected = [
        [latency(p, n, "contiguous", "even") / latency(p, n, "zigzag", "balanced") for n in LENGTHS]
        for p in PERCENTS
    ]
    assert np.allclose(panels["balanced, zigzag"], expected)
    texts = [text.get_text() for text in figure.axes[3].texts]
    assert texts == [f"{value:.2f}" for row in expected for value in row]


def test_bars_show_the_speedup_of_each_way(runs):
    figure = comparisons.speedup_bars(runs)
    assert len(figure.axes) == 6
    heights = {bars.get_label(): bars.patches[0].get_height() for bars in figure.axes[0].containers}
    base = latency(10, 4096, "contiguous", "even")
    assert heights["even, contiguous"] == 1.0
    assert heights["balanced, zigzag"] == pytest.approx(base / latency(10, 4096, "zigzag", "balanced"))


def test_tokens_are_stacked_by_rank_beside_what_speeds_ask_for(runs):
    figure = comparisons.token_distribution(runs)
    axis = next(axis for axis in figure.axes if axis.get_title() == "balanced, zigzag")
    bars = [patch for container in axis.containers for patch in container.patches]
    stacked = [(bar.get_y(), bar.get_height()) for bar in bars]
    assert np.allclose(stacked, [(0.0, 0.7), (0.7, 0.3)] * 3)
    assert [set(line.get_ydata()) for line in axis.lines] == [{0.75}] * 3


def test_the_extreme_case_is_the_slowest_rank_and_the_longest_prompt(runs):
    (axis,) = comparisons.extreme_case(runs).axes
    assert axis.get_title() == "ranks at 100/10 %, 16k tokens"
    widths = {bars.get_label(): bars.patches[0].get_width() for bars in axis.containers}
    assert widths["lut, zigzag, keys/values only"] == 50.0
    assert widths["even, zigzag"] == latency(10, 16384, "zigzag", "even")
    assert list(axis.lines[0].get_xdata()) == pytest.approx([5.0, 5.0])


def test_predictions_are_drawn_against_measurements(runs):
    both, errors = comparisons.predicted_and_measured(runs).axes
    measured, predicted = lines(both)["balanced, zigzag"]
    assert predicted == pytest.approx([1.02 * value for value in measured])
    assert lines(errors)["balanced, zigzag"][1] == pytest.approx([2.0] * 6)
    assert "zigzag: error median 2.0%, 95 % within 2.0%" in errors.get_title()


def test_keys_and_values_only_is_relative_to_even_of_its_layout(runs):
    figure = curves.kv_only(runs)
    drawn = lines(figure.axes[0])
    assert drawn["lut, zigzag, kv"][1] == [latency(p, 4096, "zigzag", "even") / 50.0 for p in PERCENTS]
    assert "even, contiguous" not in drawn


def test_timelines_show_the_median_iteration_of_each_run(runs):
    figure = timeline.ring_timelines(runs)
    assert len(figure.axes) == 3  # contiguous even, zigzag even, zigzag balanced; kv left no hops
    value = latency(10, 16384, "contiguous", "even")
    bars = [bar for container in figure.axes[0].containers for bar in container.patches]
    rank_1 = [bar for bar in bars if round(bar.get_y() + bar.get_height() / 2, 6) == 1]
    assert sum(bar.get_width() for bar in rank_1) == pytest.approx(value + 1.0)  # of +0, +9 and +1
    rank_0 = [bar for bar in bars if round(bar.get_y() + bar.get_height() / 2, 6) == 0]
    waits = sum(bar.get_width() for bar in rank_0 if bar.get_hatch())
    assert waits == pytest.approx(value + 1.0 - 3.5)


def test_a_record_that_was_cut_off_gives_no_timeline(folder, tmp_path):
    assert timeline.median_iteration(tmp_path) is None
    (tmp_path / "iterations.csv").write_text("iteration,rank,latency_ms\n0,0,1.0\n")
    (tmp_path / "hops.csv").write_text("")
    assert timeline.median_iteration(tmp_path) is None


def row(percentage: float, length: int, tokens: int | None = None) -> SpeedRow:
    half = length // 2 if tokens is None else tokens
    speed = 3.0 * percentage * (1 - 500 / length)
    return SpeedRow("H200", "mps", percentage, 1, "s", length, half, speed, 1.0, 0.0, 5, "2026-03-01", "")


def test_calibration_has_the_points_the_interpolation_and_the_regression():
    rows = [row(p, n) for p in (10.0, 50.0, 100.0) for n in (4096, 16384, 65536)] + [row(50.0, 4096, 512)]
    figure = calibration_curves(rows)
    by_percent, by_length, surface = figure.axes[:3]
    measured = {line.get_label(): line for line in by_percent.lines if line.get_marker() == "o"}
    assert list(measured["4k"].get_ydata()) == [row(p, 4096).speed_tflops for p in (10.0, 50.0, 100.0)]
    lut = by_percent.lines[1]
    assert lut.get_ydata()[-1] == pytest.approx(row(100.0, 4096).speed_tflops)
    assert len(by_length.lines) == 9
    assert len(surface.collections[-1].get_offsets()) == 9  # the row of an eighth is no speed
    assert "9 rows" in surface.get_title()


def test_calibration_of_one_percentage_is_not_drawn():
    assert calibration_curves([row(50.0, 4096), row(50.0, 8192)]) is None
    assert calibration_curves([]) is None


def test_a_single_run_draws_what_it_can_and_nothing_fails(tmp_path):
    write_run(tmp_path, without=("latency_ms_predicted", "shares", "capacity_efficiency", "slowdown"))
    ((_, group),) = contexts(load_runs([tmp_path]))
    assert [kind.name for kind in FIGURES if kind.draw(group)] == []


def test_every_partitioner_has_one_colour_and_every_layout_one_style():
    assert len(set(style.COLOURS.values())) == len(style.COLOURS)
    looks = [style.style("lut", layout) for layout in ("contiguous", "zigzag")]
    assert looks[0]["color"] == looks[1]["color"]
    assert looks[0]["linestyle"] != looks[1]["linestyle"]
    assert looks[0]["marker"] != looks[1]["marker"]


def drifted(prompt: int, tokens: list[int], efficiency: float | None = 0.9) -> Prompt:
    return Prompt([100.0, 100.0 if prompt < 2 else 50.0], tokens, [1.0, 1.0], None, efficiency)


@pytest.mark.parametrize(
    ("shares", "prompt", "labels"),
    [
        ([[0.5, 0.6, 0.5], [0.5, 0.4, 0.5]], 1, {"rank 0": 0.6, "rank 1": 0.4}),
        ([[0.5, 0.5], [0.5, 0.5]], 1, {"ranks 0, 1": 0.5}),
        ([[0.4, 0.4], [0.1, 0.1], [0.4, 0.4], [0.1, 0.1]], 1, {"ranks 0, 2": 0.4, "ranks 1, 3": 0.1}),
    ],
)
def test_ranks_are_named_where_their_shares_are_apart(shares, prompt, labels):
    at, named = adaptation.widest(shares)
    assert (at, {text: share for share, text in named}) == (prompt, labels)


def test_drift_is_drawn_prompt_by_prompt_and_only_there(tmp_path):
    drift = DriftConfig("step", [100, 50], at=2)
    courses = {"balanced": [[2048, 2048]] * 4, "adaptive": [[2048, 2048]] * 3 + [[2736, 1360]]}
    for number, (name, tokens) in enumerate(courses.items()):
        total = {"replans": 1, "replan_ms": 1.0, "total_ms": 100.0 - 20 * number, "prompts": []}
        made = write_run(
            tmp_path, number, percentages=(100, 100), partitioner=name, drift=drift, adaptation=total
        )
        latencies = [10.0, 10.0, 20.0, 20.0 if name == "balanced" else 13.0]
        prompts = [drifted(prompt, each) for prompt, each in enumerate(tokens)]
        write_iterations(made, [two_rank_iteration(latency) for latency in latencies], prompts)
    write_run(tmp_path, 2, percentages=(100, 100), partitioner="even")
    (_, group), (_, steady) = contexts(load_runs([tmp_path]))
    assert len(group), len(steady) == (2, 1)
    figure = adaptation.adaptation(group)
    upper, lower = figure.axes
    assert upper.get_title() == "100/100:\nstep to 100/50 at 2"
    assert lines(upper)["adaptive"] == ([0, 1, 2, 3], [10.0, 10.0, 20.0, 13.0])
    assert lines(upper)["capacity ideal"][1] == pytest.approx([9.0, 9.0, 18.0, 18.0])
    assert lines(lower)["adaptive, rank 1"][1] == [0.5, 0.5, 0.5, 1360 / 4096]
    assert lines(lower)["balanced, rank 0"][1] == [0.5] * 4
    assert adaptation.adaptation(steady) is None
    (gain, _) = headlines(group)
    assert (gain.name, gain.text) == ("Adaptive over balanced, step to 100/50 at 2", "1.25x")
