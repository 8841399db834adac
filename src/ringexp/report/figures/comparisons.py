"""The ways of splitting beside each other: speedups, tokens, the extreme case, predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ringexp.report.figures import style
from ringexp.report.frame import Run, Runs, each_run, ranks_of, where
from ringexp.tracking import metrics
from ringexp.web.palette import VERMILION

BASELINE = ("contiguous", "even")


def speedup_heatmaps(runs: Runs) -> Figure | None:
    """Draw the speedup over contiguous even by percentage and length: a panel per layout and partitioner."""
    runs = where(runs, runs.speedup_over_contiguous_even.notna() & (runs["split"] == "tokens"))
    ways = [
        (layout, partitioner)
        for layout in style.ordered_ways(runs.layout)
        for partitioner in style.ordered(runs.partitioner)
    ]
    if len(ways) < 2 or runs.slow_percent.nunique() < 2 or runs.seq_len.nunique() < 2:
        return None
    layouts, partitioners = (list(dict.fromkeys(part)) for part in zip(*ways, strict=True))
    percents, lengths = sorted(runs.slow_percent.unique()), sorted(runs.seq_len.unique())
    size = {"width": 0.45 * len(lengths) + 0.9, "height": 0.3 * len(percents) + 0.8}
    figure, grid = style.new_figure(len(layouts), len(partitioners), sharex=True, sharey=True, **size)
    furthest = max(runs.speedup_over_contiguous_even.max(), 1 / runs.speedup_over_contiguous_even.min(), 1.1)
    norm = colors.LogNorm(1 / furthest, furthest)
    image = None
    for row, layout in zip(grid, layouts, strict=True):
        for axis, partitioner in zip(row, partitioners, strict=True):
            chosen_runs = where(runs, (runs.layout == layout) & (runs.partitioner == partitioner))
            table = chosen_runs.pivot_table(
                index="slow_percent", columns="seq_len", values="speedup_over_contiguous_even"
            )
            values = table.reindex(index=percents, columns=lengths).to_numpy()
            image = axis.imshow(values, norm=norm, cmap="PuOr_r", aspect="auto", origin="lower")
            _annotate(axis, values, norm)
            axis.set_title(f"{partitioner}, {layout}", fontsize=10)
            axis.set_xticks(range(len(lengths)), [style.tokens(length) for length in lengths])
            axis.set_yticks(range(len(percents)), [f"{percent:g}" for percent in percents])
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
    assert image is not None
    figure.supxlabel(style.LENGTH_AXIS, fontsize=10)
    figure.supylabel(style.PERCENT_AXIS, fontsize=10)
    bar = figure.colorbar(image, ax=[axis for row in grid for axis in row], pad=0.01, aspect=40)
    bar.set_label("speedup over contiguous even (log scale)", fontsize=10)
    marks = [mark for mark in (0.2, 0.5, 0.8, 1, 1.25, 2, 4, 8, 16) if 1 / furthest <= mark <= furthest]
    bar.set_ticks(marks, labels=[f"{mark:g}x" for mark in marks])
    bar.minorticks_off()
    return figure


def _annotate(axis: Axes, values: np.ndarray, norm: colors.LogNorm) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = abs(float(norm(value)) - 0.5) > 0.33
            axis.text(
                column,
                row,
                f"{value:.2f}" if value < 9.95 else f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )


def speedup_bars(runs: Runs) -> Figure | None:
    """Draw the speedup over contiguous even: a panel per profile and length, if these are at most six."""
    runs = where(runs, runs.speedup_over_contiguous_even.notna() & (runs["split"] == "tokens"))
    cells = runs.drop_duplicates(["slow_percent", "profile", "seq_len"])
    cells = cells.sort_values(by=["slow_percent", "seq_len"])
    if len(runs) < 2 or not 0 < len(cells) <= 6:
        return None
    layouts, partitioners = style.ordered_ways(runs.layout), style.ordered(runs.partitioner)
    figure, axes = style.panels(len(cells), width=0.9 * len(partitioners) + 0.9)
    width = 0.84 / len(layouts)
    for axis, (_, cell) in zip(axes, cells.iterrows(), strict=True):
        here = where(runs, (runs.profile == cell.profile) & (runs.seq_len == cell.seq_len))
        for place, partitioner in enumerate(partitioners):
            for offset, layout in enumerate(layouts):
                chosen_runs = where(here, (here.layout == layout) & (here.partitioner == partitioner))
                if chosen_runs.empty:
                    continue
                bars = axis.bar(
                    place + (offset - (len(layouts) - 1) / 2) * width,
                    chosen_runs.speedup_over_contiguous_even.iloc[-1],
                    width=0.94 * width,
                    label=f"{partitioner}, {layout}",
                    **_bar(partitioner, layout),
                )
                axis.bar_label(bars, fmt="%.2f", fontsize=8, padding=1)
        axis.axhline(1.0, color="#888888", linewidth=0.8, zorder=0.5)
        axis.set_xticks(range(len(partitioners)), partitioners)
        axis.set_title(f"ranks at {cell.profile} %, {style.tokens(cell.seq_len)} tokens", fontsize=11)
        axis.set_ylabel("speedup over contiguous even")
        axis.margins(y=0.12)
    _layout_legend(figure, layouts)
    return figure


def _bar(partitioner: str, layout: str) -> dict[str, Any]:
    """Return the look of a bar: filled for zigzag, hatched for contiguous and for keys/values only."""
    own = style.colour(partitioner)
    hatch = {"zigzag": None, "contiguous": "////", "kv": "...."}.get(layout, "xx")
    return {"facecolor": own if hatch is None else "white", "edgecolor": own, "hatch": hatch}


def _layout_legend(figure: Figure, layouts: list[str]) -> None:
    if len(layouts) < 2:
        return
    words = {"kv": "zigzag, keys/values only"}
    handles = []
    for layout in layouts:
        look = _bar("", layout) | {"edgecolor": "#555555"}
        look["facecolor"] = "#555555" if look["hatch"] is None else "white"
        handles.append(Patch(label=words.get(layout, layout), **look))  # type: ignore[arg-type]
    style.below(figure, handles)


def token_distribution(runs: Runs) -> Figure | None:
    """Draw the shares of the longest prompt's tokens, stacked by rank; marks show the measured speeds."""
    runs = where(runs, (runs["split"] == "tokens") & (runs.seq_len == runs.seq_len.max()))
    runs = where(runs, [bool(ranks_of(run, "shares")) for run in each_run(runs)])
    if runs.empty:
        return None
    layouts, partitioners = style.ordered_ways(runs.layout), style.ordered(runs.partitioner)
    percents = sorted(runs.slow_percent.unique())
    width = max(0.24 * len(percents) + 0.7, 2.15, 3.4 / len(partitioners))
    figure, grid = style.new_figure(
        len(layouts), len(partitioners), width=width, height=2.6, sharex=True, sharey=True
    )
    for axes, layout in zip(grid, layouts, strict=True):
        for axis, partitioner in zip(axes, partitioners, strict=True):
            chosen_runs = where(runs, (runs.layout == layout) & (runs.partitioner == partitioner))
            for run in each_run(chosen_runs):
                _stack(axis, run, percents.index(run.slow_percent), partitioner)
            axis.set_title(f"{partitioner}, {layout}", fontsize=10)
            axis.set_xticks(range(len(percents)), [f"{p:g}" for p in percents], fontsize=8)
            axis.set_ylim(0, 1)
    for axis in grid[-1]:
        axis.set_xlabel("slowest rank, %", fontsize=10)
    length = style.tokens(runs.seq_len.iloc[0])
    figure.supylabel(f"part of {length} tokens", fontsize=10)
    ranks = int(runs.world_size.iloc[0])
    handles: list[Artist] = [
        Patch(facecolor=style.shade("even", rank, ranks), edgecolor="#555555", label=f"rank {rank}")
        for rank in range(ranks)
    ]
    mark = {"color": VERMILION, "marker": "_", "linestyle": "", "markersize": 11, "markeredgewidth": 2.5}
    handles.append(Line2D([], [], label="as measured speeds would have it", **mark))  # type: ignore[arg-type]
    style.below(figure, handles)
    return figure


def _stack(axis: Axes, run: Run, place: int, partitioner: str) -> None:
    bottom, shares, speeds = 0.0, ranks_of(run, "shares"), ranks_of(run, "speeds")
    for rank, share in enumerate(shares):
        fill = style.shade(partitioner, rank, len(shares))
        axis.bar(place, share, bottom=bottom, width=0.86, facecolor=fill, edgecolor="white", linewidth=0.5)
        bottom += share
    for boundary in np.cumsum(speeds)[:-1] / sum(speeds) if speeds else ():
        axis.plot([place - 0.43, place + 0.43], [boundary, boundary], color=VERMILION, linewidth=2)


def extreme_case(runs: Runs) -> Figure | None:
    """Draw the latency of every way of splitting for the slowest rank and the longest prompt."""
    cell = extreme_cell(runs)
    if len(cell) < 2:
        return None
    ways = [style.way(layout, split) for layout, split in zip(cell.layout, cell["split"], strict=True)]
    cell = cell.assign(way=ways)
    places = {
        (way, partitioner): None
        for way in style.ordered_ways(ways)
        for partitioner in style.ordered(cell.partitioner)
        if ((cell.way == way) & (cell.partitioner == partitioner)).any()
    }
    height = 0.36 * len(places) + 0.5
    figure, ((axis,),) = style.new_figure(1, 1, width=8.5, height=height)
    labels = []
    for place, (way, partitioner) in enumerate(places):
        run = where(cell, (cell.way == way) & (cell.partitioner == partitioner)).iloc[-1]
        labels.append(f"{partitioner}, {run.layout}" + (", keys/values only" if way == "kv" else ""))
        axis.barh(place, run.latency_ms_median, height=0.8, label=labels[-1], **_bar(partitioner, way))
        text = f"{run.latency_ms_median:.4g} ms"
        if np.isfinite(run.speedup_over_contiguous_even):
            text += f"  {run.speedup_over_contiguous_even:.2f}x"
        axis.annotate(
            text,
            (run.latency_ms_median, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )
    ideal = (cell.capacity_efficiency * cell.latency_ms_median).median()
    if np.isfinite(ideal):
        axis.axvline(ideal, **style.IDEAL)
        handle = style.ideal_handle(f"capacity ideal, {ideal:.4g} ms")
        style.below(figure, [handle])
    axis.set_yticks(range(len(labels)), labels, fontsize=10)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.2 * cell.latency_ms_median.max())
    compared = np.isfinite(cell.speedup_over_contiguous_even).any()
    axis.set_xlabel("latency, ms" + ("; how many times faster than contiguous even" if compared else ""))
    first = cell.iloc[0]
    axis.set_title(f"ranks at {first.profile} %, {style.tokens(first.seq_len)} tokens", fontsize=11)
    return figure


def extreme_cell(runs: Runs) -> Runs:
    """Return the runs with the slowest rank and, of those, the longest prompt."""
    slowest = where(runs, runs.slow_percent == runs.slow_percent.min())
    longest = where(slowest, slowest.seq_len == slowest.seq_len.max())
    return where(longest, longest.profile == longest.profile.iloc[0]) if len(longest) else longest


def predicted_and_measured(runs: Runs) -> Figure | None:
    """Draw the plan's simulated latency over the measured one, and its error, with a band of 5 %."""
    runs = where(runs, runs.latency_ms_predicted.notna())
    if runs.empty:
        return None
    figure, ((axis, errors),) = style.new_figure(1, 2, width=6.2, height=4.6)
    for partitioner in style.ordered(runs.partitioner):
        for layout in style.ordered_ways(runs.layout):
            chosen_runs = where(runs, (runs.partitioner == partitioner) & (runs.layout == layout))
            look = style.style(partitioner, layout) | {"linestyle": "", "alpha": 0.75}
            name = f"{partitioner}, {layout}"
            axis.plot(chosen_runs.latency_ms_median, chosen_runs.latency_ms_predicted, label=name, **look)
            errors.plot(chosen_runs.latency_ms_median, 100 * chosen_runs.prediction_error, label=name, **look)
    both = runs[["latency_ms_median", "latency_ms_predicted"]]
    ends = np.array([both.min().min() / 1.25, both.max().max() * 1.25])
    axis.plot(ends, ends, color="#555555", linewidth=1, zorder=1)
    errors.axhline(0, color="#555555", linewidth=1, zorder=1)
    grey = {"color": "#bbbbbb", "alpha": 0.6, "linewidth": 0, "zorder": 0.5}
    axis.fill_between(ends, 0.95 * ends, 1.05 * ends, **grey)
    errors.axhspan(-5, 5, **grey)
    for panel in (axis, errors):
        panel.set_xlim(*ends)
        style.log_x(panel)
        panel.set_xlabel("measured latency, ms")
    axis.set_ylim(*ends)
    style.log_y(axis)
    axis.set_ylabel("predicted latency, ms")
    errors.set_ylabel("predicted / measured - 1, %")
    axis.set_title(f"{len(runs)} runs of {runs.world_size.iloc[0]:.0f} ranks", fontsize=11)
    for layout, layout_runs in runs.groupby("layout"):
        middle, high = metrics.absolute_errors(list(layout_runs.prediction_error))
        text = f"{layout}: error median {middle:.1%}, 95 % within {high:.1%}"
        titles = [title for title in (errors.get_title(), text) if title]
        errors.set_title("\n".join(titles), fontsize=10)
    errors.grid(axis="y", color="#dddddd", linewidth=0.6)
    band = Patch(facecolor="#bbbbbb", label="within 5 %")
    style.legend(figure, style.ordered(runs.partitioner), style.ordered_ways(runs.layout), [band])
    return figure
