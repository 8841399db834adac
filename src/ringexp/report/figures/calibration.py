"""Calibration curves: what was measured, how `lut` reads between, and the regression of `formula`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ringexp.calibration.formula import FormulaModel
from ringexp.calibration.lookup_table import LookupTable
from ringexp.calibration.rows import SpeedRow
from ringexp.report.figures import style

SAMPLES = 60


def calibration_curves(rows: Sequence[SpeedRow]) -> Figure | None:
    """Draw speeds over the percentage and over the length, and the regression as a surface.

    rows: of one hardware, throttle and shape, with the same other ranks on the device. None with one
    percentage or length only.
    """
    rows = [row for row in rows if row.is_half]
    percents, lengths = sorted({row.percentage for row in rows}), sorted({row.length for row in rows})
    if len(percents) < 2 or len(lengths) < 2:
        return None
    table, formula = LookupTable(rows), FormulaModel.fit(rows)
    figure, ((by_percent, by_length, surface),) = style.new_figure(1, 3, width=4.6, height=3.9)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(lengths)))
    for shade, length in zip(shades, lengths, strict=True):
        measured = sorted((row.percentage, row.speed_tflops) for row in rows if row.length == length)
        sampled_percents = np.linspace(percents[0] / 2, percents[-1], SAMPLES)
        speeds = [(table.speed(length, p), formula.speed(length, p)) for p in sampled_percents]
        _curves(by_percent, shade, measured, sampled_percents, speeds, style.tokens(length))
    by_percent.set_xlabel("percentage asked for")
    by_percent.legend(title="tokens", fontsize=8, title_fontsize=8, frameon=False)
    shown = _some(percents, 5)
    shades = matplotlib.colormaps["plasma"](np.linspace(0, 0.85, len(shown)))
    for shade, percent in zip(shades, shown, strict=True):
        measured = sorted((row.length, row.speed_tflops) for row in rows if row.percentage == percent)
        sampled_lengths = np.geomspace(lengths[0], lengths[-1], SAMPLES)
        speeds = [(table.speed(round(n), percent), formula.speed(round(n), percent)) for n in sampled_lengths]
        _curves(by_length, shade, measured, sampled_lengths, speeds, f"{percent:g} %")
    style.length_axis(by_length, lengths)
    for axis in (by_percent, by_length):
        axis.set_ylabel("speed, TFLOP/s")
        axis.set_ylim(0)
    by_length.set_ylim(top=1.15 * by_length.get_ylim()[1])  # for the legend, in a row above the curves
    by_length.legend(
        loc="upper center", ncols=len(shown), fontsize=8, handletextpad=0, columnspacing=1, frameon=False
    )
    _surface(figure, surface, rows, formula, lengths, percents)
    by_percent.set_title("over the percentage", fontsize=11)
    by_length.set_title("over the length", fontsize=11)
    surface.set_title(f"formula, R² = {formula.r_squared:.4f}, {formula.num_rows} rows", fontsize=11)
    look = {"color": "#555555", "linewidth": 1.5}
    handles = [
        Line2D([], [], marker="o", linestyle="", color="#555555", label="measured"),
        Line2D([], [], label="lut: interpolation", **look),  # type: ignore[arg-type]
        Line2D([], [], linestyle="--", label="formula: regression", **look),  # type: ignore[arg-type]
    ]
    style.below(figure, handles)
    return figure


def _curves(
    axis: Axes,
    shade: np.ndarray,
    measured: Sequence[tuple[float, float]],
    sampled_x: np.ndarray,
    speeds: Sequence[tuple[float, float]],
    label: str,
) -> None:
    axis.plot(*zip(*measured, strict=True), "o", color=shade, markersize=4.5, label=label)
    axis.plot(sampled_x, [lut for lut, _ in speeds], color=shade, linewidth=1.5)
    axis.plot(sampled_x, [formula for _, formula in speeds], color=shade, linewidth=1.2, linestyle="--")


def _surface(
    figure: Figure,
    axis: Axes,
    rows: Sequence[SpeedRow],
    formula: FormulaModel,
    lengths: Sequence[int],
    percents: Sequence[float],
) -> None:
    """Draw the regression as colours over length and percentage. A measured point that fits is invisible."""
    exponents = np.linspace(math.log2(lengths[0]) - 0.3, math.log2(lengths[-1]) + 0.3, SAMPLES)
    sampled_percents = np.linspace(max(percents[0] - 4, 1), min(percents[-1] + 4, 100), SAMPLES)
    speeds = [[formula.speed(round(2**e), p) for e in exponents] for p in sampled_percents]
    norm = Normalize(0, max(row.speed_tflops for row in rows))
    image = axis.pcolormesh(
        2**exponents, sampled_percents, speeds, norm=norm, cmap="cividis", shading="gouraud"
    )
    # A line through the fastest corner alone would have its label cut off by the frame.
    top = 0.95 * np.max(speeds)
    levels = [level for level in MaxNLocator(8).tick_values(0, top) if 0 < level < top]
    lines = axis.contour(
        2**exponents, sampled_percents, speeds, levels=levels, colors="white", linewidths=0.7
    )
    axis.clabel(lines, fontsize=8, fmt="%g")
    axis.scatter(
        [row.length for row in rows],
        [row.percentage for row in rows],
        c=[row.speed_tflops for row in rows],
        norm=norm,
        cmap="cividis",
        edgecolors="white",
        s=42,
        linewidths=0.8,
        zorder=3,
        clip_on=False,
    )
    style.length_axis(axis, lengths)
    axis.set_ylabel("percentage asked for")
    figure.colorbar(image, ax=axis, pad=0.02).set_label("speed, TFLOP/s; circles: measured", fontsize=9)


def _some(values: Sequence[float], count: int) -> list[float]:
    """Return at most `count` of the values, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]
