"""The main findings of some runs, in one line each: a figure, and the run it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from ringexp.report.frame import Run, Runs, each_run, ranks_of, where
from ringexp.report.roles import adapting, balancing, baselines, rivals

LONG_TOKENS = 16384
"""Capacity efficiency is summed up over prompts at least this long, where fixed costs are small."""


@dataclass(frozen=True)
class Headline:
    """One finding. value: the figure; text: the figure as shown; detail: its meaning and its run."""

    name: str
    value: float
    text: str
    detail: str


def headlines(runs: Runs) -> list[Headline]:
    """Return the findings of complete runs that may be compared (see `frame.contexts`)."""
    runs = runs.reset_index(drop=True)
    if (runs.drift != "").any():
        return [*_adapted(runs), *_exactness(runs)]
    tokens = where(runs, runs["split"] == "tokens")
    recommended = where(tokens, tokens.partitioner.isin(balancing()) & (tokens.layout == "zigzag"))
    return [
        *_best_speedups(tokens),
        *_capacity(recommended),
        *_worst(recommended, "speedup_over_contiguous_even", "balanced, zigzag against contiguous even"),
        *_worst(recommended, "speedup_over_even", "balanced, zigzag against zigzag even"),
        *_worst(recommended, "speedup_over_single", "balanced, zigzag against the fastest device alone"),
        *_against_balanced(tokens, recommended),
        *_prediction(runs),
        *_kv_only(runs),
        *_exactness(runs),
    ]


def describe(run: Run) -> str:
    """Name a run: partitioner, layout, profile, length, folder."""
    split = ", keys/values only" if run["split"] == "kv" else ""
    where = f"ranks at {run.profile} %, {int(run.seq_len)} tokens: {run.run}"
    return f"{run.partitioner}, {run.layout}{split}, {where}"


def _adapted(runs: Runs) -> list[Headline]:
    """Compare the time of all prompts under drift, replanning included, with that of a plan made once."""
    keys = ["profile", "seq_len", "layout"]
    columns = [*keys, "adaptation.total_ms"]
    static = where(runs, runs.partitioner.isin(balancing()))[columns]
    both = where(runs, runs.partitioner.isin(adapting())).merge(static, on=keys, suffixes=("", ".static"))
    adaptation_gains = []
    for run in each_run(both):
        gain = float(run["adaptation.total_ms.static"] / run["adaptation.total_ms"])
        name = f"Adaptive over balanced, {run.drift}"
        adaptation_gains.append(Headline(name, gain, f"{gain:.2f}x", f"time of all prompts; {describe(run)}"))
    return adaptation_gains


def _best_speedups(runs: Runs) -> list[Headline]:
    """Find the best speedup over contiguous even, of all runs and with the slowest rank at half speed."""
    runs = where(runs, runs.speedup_over_contiguous_even.notna())
    if runs[~_is_base(runs)].empty:
        return []
    best_speedups = [_best(runs, "speedup_over_contiguous_even", "Best speedup over contiguous even")]
    half = where(runs, runs.slow_percent == 50)
    if len(half) and runs.slow_percent.nunique() > 1:
        best_speedups.append(
            _best(half, "speedup_over_contiguous_even", "Best speedup over contiguous even at 50 %")
        )
    return best_speedups


def _is_base(runs: Runs) -> Run:
    return (runs.layout == "contiguous") & runs.partitioner.isin(baselines())


def _best(runs: Runs, column: str, name: str) -> Headline:
    run = runs.loc[runs[column].idxmax()]
    return Headline(name, run[column], f"{run[column]:.2f}x", describe(run))


def _worst(runs: Runs, column: str, against: str) -> list[Headline]:
    runs = where(runs, runs[column].notna())
    if runs.empty:
        return []
    run = runs.loc[runs[column].idxmin()]
    value = run[column]
    return [
        Headline(f"Worst case of {against}", value, f"{value:.2f}x", f"of {len(runs)} runs; {describe(run)}")
    ]


def _capacity(runs: Runs) -> list[Headline]:
    efficiencies = []
    for column, how in (
        ("capacity_efficiency", "isolated"),
        ("capacity_efficiency_back_to_back", "back to back"),
    ):
        measured_runs = where(runs, runs[column].notna())
        if measured_runs.empty:
            continue
        shortest = min(LONG_TOKENS, measured_runs.seq_len.max())
        measured_runs = where(measured_runs, measured_runs.seq_len >= shortest)
        run = measured_runs.loc[measured_runs[column].idxmin()]
        efficiencies.append(
            Headline(
                f"Capacity efficiency of balanced, zigzag, {how}",
                measured_runs[column].median(),
                f"{measured_runs[column].median():.3f}",
                f"median of {len(measured_runs)} runs of {shortest:.0f} tokens and more; "
                f"lowest {run[column]:.3f}: {describe(run)}",
            )
        )
    return efficiencies


def _against_balanced(runs: Runs, recommended: Runs) -> list[Headline]:
    """Compare partitioners by speed with the balancing one, at their worst, and count ranks left empty."""
    keys = ["profile", "seq_len"]
    comparisons = []
    for name in rivals(runs.partitioner):
        rival_runs = where(runs, (runs.partitioner == name) & (runs.layout == "zigzag"))
        pairs = rival_runs.merge(
            recommended[[*keys, "latency_ms_median"]], on=keys, suffixes=("", "_balanced")
        )
        if pairs.empty:
            continue
        ratio = pairs.latency_ms_median / pairs.latency_ms_median_balanced
        run, value = pairs.loc[ratio.idxmax()], ratio.max() - 1
        empty = sum(0 in ranks_of(row, "tokens") for row in each_run(rival_runs))
        comparisons.append(
            Headline(
                f"{name} against balanced, zigzag, at its worst",
                value,
                f"{100 * value:+.1f} %",
                f"latency, median {100 * (ratio.median() - 1):+.1f} % of {len(pairs)}; {describe(run)}; "
                f"runs with an empty rank: {empty}",
            )
        )
    return comparisons


def _prediction(runs: Runs) -> list[Headline]:
    errors = runs.prediction_error.abs().dropna()
    if errors.empty:
        return []
    run = runs.loc[errors.idxmax()]
    return [
        Headline(
            "Predicted against measured latency",
            errors.median(),
            f"{100 * errors.median():.1f} %",
            f"median error of {len(errors)} runs; largest {100 * run.prediction_error:+.1f} %: "
            f"{describe(run)}",
        )
    ]


def _kv_only(runs: Runs) -> list[Headline]:
    """Compare splitting keys/values only with the even split of the same layout and sweep."""
    keys = ["profile", "seq_len", "layout"]
    even = where(runs, runs.partitioner.isin(baselines()) & (runs["split"] == "tokens"))
    kv = where(runs, runs["split"] == "kv").merge(
        even[[*keys, "latency_ms_median"]], on=keys, suffixes=("", "_even")
    )
    if kv.empty:
        return []
    kv = kv.assign(over_even=kv.latency_ms_median_even / kv.latency_ms_median)
    best = _best(kv, "over_even", "Best of splitting keys/values only, over even of its layout")
    detail = f"median {kv.over_even.median():.2f}x of {len(kv)} runs; {best.detail}"
    return [Headline(best.name, best.value, best.text, detail)]


def _exactness(runs: Runs) -> list[Headline]:
    checked = where(runs, runs.exact.isin([True]) & runs.error_max_abs.notna())
    if checked.empty:
        return []
    run = checked.loc[checked.error_max_abs.idxmax()]
    return [
        Headline(
            "Outputs equal to a single process",
            float(len(checked)),
            f"{len(checked)} of {len(runs)}",
            f"largest difference from float32 {run.error_max_abs:.2g}, of one process "
            f"{run.error_single_max_abs:.2g}: {describe(run)}",
        )
    ]
