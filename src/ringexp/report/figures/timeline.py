"""Timelines of one iteration of a run: how each rank computed, waited and received shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ringexp.report.figures import style
from ringexp.report.figures.comparisons import extreme_cell
from ringexp.report.folder import read_rows
from ringexp.report.frame import Run, Runs, each_run, where
from ringexp.report.values import LARGEST
from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.tracking.trace import COMPUTE, stretches

CHOSEN = (
    ("contiguous", "even", "tokens"),
    ("zigzag", "even", "tokens"),
    ("zigzag", "balanced", "tokens"),
    ("zigzag", "lut", "kv"),
    ("zigzag", "lut", "tokens"),
)
"""(layout, partitioner, shard) of the runs to show, as far as they are there; MOST of them."""

MOST = 4

MOST_TALL = 12
"""Ranks that get their full height in a panel; more share it."""


def ring_timelines(runs: Runs) -> Figure | None:
    """Draw an iteration of median latency for some runs with the slowest rank and the longest prompt."""
    run_iterations = []
    for run in _chosen(extreme_cell(runs)):
        folder = run.resumed_from if isinstance(run.resumed_from, str) else run.folder
        iteration = median_iteration(Path(folder))
        if iteration:
            run_iterations.append((run, iteration))
    if not run_iterations:
        return None
    panels = []
    for run, iteration in run_iterations:
        split = "keys/values only, " if run["split"] == "kv" else ""
        where = f"ranks at {run.profile} %, {style.tokens(run.seq_len)} tokens"
        panels.append((run.partitioner, f"{run.partitioner}, {split}{run.layout}: {where}", iteration))
    return timelines(panels)


def timelines(panels: Sequence[tuple[str, str, list[IterationTiming]]], names: Sequence[str] = ()) -> Figure:
    """Draw a panel for each (partitioner, title, timings of all ranks); names: the ranks' names."""
    ranks = len(panels[0][2])
    figure, grid = style.new_figure(len(panels), 1, width=10.5, height=0.65 + 0.62 * min(ranks, MOST_TALL))
    for (axis,), (partitioner, title, iteration) in zip(grid, panels, strict=True):
        _draw(axis, partitioner, iteration, names or [f"rank {rank}" for rank in range(ranks)])
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("ms since the start of the iteration", fontsize=9)
    handles = [
        Patch(facecolor="#555555", label="computing, paler with others' keys/values"),
        Patch(facecolor="white", edgecolor="#888888", hatch="////", label="waiting"),
        Patch(facecolor=style.IDEAL["color"], label="transfer under way"),
    ]
    style.below(figure, handles)
    return figure


def _chosen(runs: Runs) -> list[Run]:
    chosen_runs = []
    for layout, partitioner, shard in CHOSEN:
        matching_runs = where(
            runs, (runs.layout == layout) & (runs.partitioner == partitioner) & (runs["split"] == shard)
        )
        chosen_runs += [matching_runs.iloc[-1]] if len(matching_runs) else []
    return (chosen_runs or list(each_run(runs)))[:MOST]


def median_iteration(run_dir: Path) -> list[IterationTiming] | None:
    """Return the iteration of a run whose latency is the (upper) median, with one entry per rank.

    None where the run left no hops.csv and iterations.csv that belong together.
    """
    try:
        iterations, hops = (read_rows(run_dir / name) for name in ("iterations.csv", "hops.csv"))
        latencies = sorted({(float(row["latency_ms"]), row["iteration"]) for row in iterations})
        if not latencies:
            return None
        _, wanted = latencies[len(latencies) // 2]
        layers = read_rows(run_dir / "layers.csv") if (run_dir / "layers.csv").exists() else []
        return [
            _timing(
                row,
                [hop for hop in hops if (hop["iteration"], hop["rank"]) == (wanted, row["rank"])],
                [layer for layer in layers if (layer["iteration"], layer["rank"]) == (wanted, row["rank"])],
            )
            for row in sorted(iterations, key=lambda row: int(row["rank"]))
            if row["iteration"] == wanted
        ]
    except (KeyError, ValueError, TypeError):  # not there, older, or cut off while being written
        return None


def _timing(row: dict[str, str], hops: list[dict[str, str]], layers: list[dict[str, str]]) -> IterationTiming:
    """Read one rank's timing. Without layers.csv all other work counts as before the first attention."""
    busy_ms = float(row["busy_ms"])
    attended = [_hop(hop) for hop in hops]
    linear_ms = [float(layer["linear_ms"]) for layer in layers]
    linear_ms = linear_ms or [busy_ms - sum(hop.compute_ms for hop in attended)]
    latency_ms = float(row["latency_ms"])
    if any(not 0 <= hop.layer < len(linear_ms) for hop in attended):
        raise ValueError("a hop of a layer that there is not")
    if not 0 < latency_ms < LARGEST:
        raise ValueError("an iteration without a latency")
    return IterationTiming(latency_ms, busy_ms, attended, linear_ms)


def _hop(row: dict[str, str]) -> HopTiming:
    return HopTiming(
        source=int(row["source"]),
        wait_ms=float(row["wait_ms"]),
        compute_ms=float(row["compute_ms"]),
        transfer_ms=float(row["transfer_ms"]),
        transfer_start_ms=float(row["transfer_start_ms"]),
        layer=int(row.get("layer", 0)),
    )


def _draw(axis: Axes, partitioner: str, ranks: Sequence[IterationTiming], names: Sequence[str]) -> None:
    """Draw a bar per rank for computing and waiting, and a thin one below it for transfers."""
    for rank, timing in enumerate(ranks):
        if not timing.hops:
            axis.text(0, rank, " holds no tokens", va="center", fontsize=9, color="#555555")
            continue
        end = 0.0
        for track, name, start_ms, duration_ms in stretches(timing, rank):
            if track != COMPUTE:
                axis.barh(rank + 0.37, duration_ms, left=start_ms, height=0.16, color=style.IDEAL["color"])
                continue
            end = max(end, start_ms + duration_ms)
            if name.startswith("wait"):
                _waiting(axis, rank, start_ms, duration_ms)
                continue
            source = int(name.split("rank ")[1].split("'")[0]) if "rank " in name else rank
            fill = style.shade(partitioner, (rank - source) % len(ranks), len(ranks) + 1)
            axis.barh(
                rank, duration_ms, left=start_ms, height=0.5, color=fill, edgecolor="white", linewidth=0.4
            )
        _waiting(axis, rank, end, timing.latency_ms - end)
    axis.set_yticks(range(len(ranks)), names)
    axis.set_ylim(len(ranks) - 0.45, -0.45)
    axis.set_xlim(0, ranks[0].latency_ms * 1.01)


def _waiting(axis: Axes, rank: int, start_ms: float, duration_ms: float) -> None:
    if duration_ms > 0:
        axis.barh(
            rank,
            duration_ms,
            left=start_ms,
            height=0.5,
            facecolor="white",
            edgecolor="#888888",
            hatch="////",
            linewidth=0.6,
        )
