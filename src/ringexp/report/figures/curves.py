"""Figures of one figure of merit over the percentage or over the length: a line a way of splitting."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ringexp.report.figures import style
from ringexp.report.frame import Runs, where
from ringexp.report.roles import balancing, baselines


def latency_by_percentage(runs: Runs) -> Figure | None:
    """Draw latency over the percentage of the slowest rank."""
    return _by_percentage(runs, "latency_ms_median", "latency, ms", style.log_y, _ideal_latency)


def latency_by_length(runs: Runs) -> Figure | None:
    """Draw latency over the length of the prompt."""
    return _by_length(runs, "latency_ms_median", "latency, ms", style.log_y, _ideal_latency)


def slowdown_by_percentage(runs: Runs) -> Figure | None:
    """Draw slowdown over the percentage of the slowest rank."""
    return _by_percentage(runs, "slowdown", "slowdown against equal ranks", style.log_y)


def slowdown_by_length(runs: Runs) -> Figure | None:
    """Draw slowdown over the length of the prompt."""
    return _by_length(runs, "slowdown", "slowdown against equal ranks", style.log_y)


def efficiency_isolated(runs: Runs) -> Figure | None:
    """Draw the capacity efficiency of isolated iterations over the percentage."""
    return _by_percentage(runs, "capacity_efficiency", "capacity efficiency", _fraction, _ideal_one)


def efficiency_back_to_back(runs: Runs) -> Figure | None:
    """Draw the capacity efficiency of iterations in a row over the percentage."""
    column = "capacity_efficiency_back_to_back"
    return _by_percentage(runs, column, "capacity efficiency, back to back", _fraction, _ideal_one)


def kv_only(runs: Runs) -> Figure | None:
    """Draw the speedup over the even split of the same layout, for split keys/values and for split tokens."""
    kv = where(runs, runs["split"] == "kv")
    if kv.empty:
        return None
    even = where(runs, runs.partitioner.isin(baselines()) & (runs["split"] == "tokens"))
    keys = ["profile", "seq_len", "layout"]
    rest = where(runs, runs.layout.isin(set(kv.layout)) & runs.seq_len.isin(set(kv.seq_len)))
    rest = rest.merge(even[[*keys, "latency_ms_median"]], on=keys, suffixes=("", "_even"))
    rest["over_even"] = rest.latency_ms_median_even / rest.latency_ms_median
    rest = where(rest, rest.partitioner.isin({*kv.partitioner, *balancing()}))
    return _by_percentage(
        rest, "over_even", "speedup over the even split", style.log_y, _ideal_one, "no gain"
    )


Scale = Callable[[Axes], None]
Ideal = Callable[[Axes, Runs, str], None]


def _by_percentage(
    runs: Runs,
    column: str,
    label: str,
    scale: Scale,
    ideal: Ideal | None = None,
    ideal_label: str = "capacity ideal",
) -> Figure | None:
    """Draw a panel per length, with the percentage to the right; None with fewer than two percentages."""
    runs = where(runs, runs[column].notna())
    if runs.slow_percent.nunique() < 2:
        return None
    lengths = sorted(runs.seq_len.unique())
    figure, axes = style.panels(len(lengths), sharey=len(lengths) > 1 and scale is _fraction)
    for axis, length in zip(axes, lengths, strict=True):
        part = where(runs, runs.seq_len == length)
        _lines(axis, part, "slow_percent", column)
        if ideal:
            ideal(axis, part, "slow_percent")
        axis.set_title(f"{style.tokens(length)} tokens", fontsize=11)
        style.percent_axis(axis, sorted(runs.slow_percent.unique()))
        axis.set_ylabel(label)
    for axis in axes:
        scale(axis)
    _legend(figure, runs, ideal_label if ideal else None)
    return figure


def _by_length(
    runs: Runs, column: str, label: str, scale: Scale, ideal: Ideal | None = None
) -> Figure | None:
    """Draw a panel for the smallest, a middle and the largest percentage; None without two lengths."""
    runs = where(runs, runs[column].notna())
    if runs.seq_len.nunique() < 2:
        return None
    percents = sorted(runs.slow_percent.unique())
    unequal = [percent for percent in percents if percent < 100] or percents
    middle = min(unequal, key=lambda percent: abs(percent - 50))
    chosen = sorted({unequal[0], middle, unequal[-1]})
    runs = where(runs, runs.slow_percent.isin(chosen))
    figure, axes = style.panels(len(chosen))
    for axis, percent in zip(axes, chosen, strict=True):
        part = where(runs, runs.slow_percent == percent)
        _lines(axis, part, "seq_len", column)
        if ideal:
            ideal(axis, part, "seq_len")
        axis.set_title(f"slowest rank at {percent:g} %", fontsize=11)
        style.length_axis(axis, sorted(runs.seq_len.unique()))
        axis.set_ylabel(label)
    for axis in axes:
        scale(axis)
    _legend(figure, runs, "capacity ideal" if ideal else None)
    return figure


def _lines(axis: Axes, runs: Runs, x: str, y: str) -> None:
    for partitioner in style.ordered(runs.partitioner):
        partitioner_runs = where(runs, runs.partitioner == partitioner)
        ways = sorted(set(zip(partitioner_runs.layout, partitioner_runs["split"], strict=True)))
        for layout, split in ways:
            line = where(
                partitioner_runs, (partitioner_runs.layout == layout) & (partitioner_runs["split"] == split)
            ).sort_values(x)
            name = f"{partitioner}, {layout}" + (", kv" if split == "kv" else "")
            axis.plot(line[x], line[y], label=name, **style.style(partitioner, str(layout), str(split)))


def _ideal_latency(axis: Axes, runs: Runs, x: str) -> None:
    ideal = (runs.capacity_efficiency * runs.latency_ms_median).dropna().groupby(runs[x]).median()
    if len(ideal):
        axis.plot(ideal.index, ideal, label="capacity ideal", **style.IDEAL)


def _ideal_one(axis: Axes, runs: Runs, x: str) -> None:
    axis.axhline(1.0, label="ideal", **style.IDEAL)


def _fraction(axis: Axes) -> None:
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_locator(style.ticker.MultipleLocator(0.2))
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)


def _legend(figure: Figure, runs: Runs, ideal: str | None) -> None:
    ways = {style.way(row.layout, row["split"]) for _, row in runs[["layout", "split"]].iterrows()}
    extra = [style.ideal_handle(ideal)] if ideal else []
    style.legend(figure, style.ordered(runs.partitioner), style.ordered_ways(ways), extra)
