"""Speeds that change in mid-run: each prompt's latency, and who had which part of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ringexp.report.figures import style
from ringexp.report.folder import read_rows
from ringexp.report.frame import Run, Runs, where
from ringexp.report.roles import adapting

MOST = 4
"""Profiles that are shown side by side."""

SHOWN = 0.97
"""Part of the latencies that the axis has room for: single odd prompts would flatten all others."""


LINE_OF_TEXT = 0.06
"""Shares that are nearer to each other get one label."""


@dataclass(frozen=True)
class PromptHistory:
    """The prompts of one run. shares is [rank][prompt]; ideal_ms is empty where it is not known."""

    latency_ms: list[float]
    ideal_ms: list[float]
    shares: list[list[float]]


def adaptation(runs: Runs) -> Figure | None:
    """Draw one column per drifting profile, at the longest prompt, on the layout of most runs."""
    runs = where(runs, (runs.drift != "") & (runs["split"] == "tokens"))
    if runs.empty:
        return None
    runs = where(runs, (runs.seq_len == runs.seq_len.max()) & (runs.layout == runs.layout.mode().iloc[0]))
    profiles = list(dict.fromkeys(runs.profile))[:MOST]
    figure, (above, below) = style.new_figure(2, len(profiles), width=4.6, height=2.7, sharex="col")
    drawn: set[str] = set()
    ideal: list[Artist] = []
    for upper, lower, profile in zip(above, below, profiles, strict=True):
        profile_runs = where(runs, runs.profile == profile)
        ideal_ms: list[float] = []
        latencies_ms: list[float] = []
        for name in style.ordered(profile_runs.partitioner):
            history = read_history(where(profile_runs, profile_runs.partitioner == name).iloc[-1])
            if history:
                _draw(upper, lower, name, history)
                ideal_ms = ideal_ms or history.ideal_ms
                latencies_ms += history.latency_ms
                drawn.add(name)
        if ideal_ms:
            ideal = [style.ideal_handle("capacity ideal")]
            upper.plot(range(len(ideal_ms)), ideal_ms, label="capacity ideal", **style.IDEAL)
        upper.set_title(profile.replace(", ", ":\n", 1), fontsize=10)
        if latencies_ms:
            upper.set_ylim(0, 1.15 * sorted(latencies_ms)[int(SHOWN * (len(latencies_ms) - 1))])
        lower.set_ylim(0, 1)
        lower.set_xlabel("prompt")
    if not drawn:
        return None
    above[0].set_ylabel("latency, ms")
    below[0].set_ylabel("part of the tokens, one line per rank")
    style.legend(figure, style.ordered(drawn), [], ideal)
    return figure


def _draw(upper: Axes, lower: Axes, name: str, history: PromptHistory) -> None:
    adapts = name in adapting()
    look = {"color": style.colour(name), "linewidth": 2.0 if adapts else 1.2, "zorder": 3 if adapts else 2}
    prompts = range(len(history.latency_ms))
    upper.plot(prompts, history.latency_ms, label=name, **look)
    for rank, shares in enumerate(history.shares):
        line = "-" if rank == 0 else (0, (4, 1.5 * rank))
        lower.plot(
            prompts, shares, label=f"{name}, rank {rank}", linestyle=line, drawstyle="steps-mid", **look
        )
    if adapts and history.shares:
        prompt, ranks = widest(history.shares)
        left = prompt < prompts[-1] / 4
        for share, text in ranks:
            lower.annotate(text, (prompt, share), fontsize=8, ha="left" if left else "right", va="bottom")


def widest(shares: list[list[float]]) -> tuple[int, list[tuple[float, str]]]:
    """Return the last prompt at which shares, [rank][prompt], are furthest apart, and the shares' labels."""
    at_prompts = list(zip(*shares, strict=True))
    prompt = max(range(len(at_prompts)), key=lambda at: (max(at_prompts[at]) - min(at_prompts[at]), at))
    groups: list[tuple[float, list[int]]] = []
    for share, rank in sorted((share, rank) for rank, share in enumerate(at_prompts[prompt])):
        if groups and share - groups[-1][0] < LINE_OF_TEXT:
            groups[-1][1].append(rank)
        else:
            groups.append((share, [rank]))
    return prompt, [
        (share, f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}")
        for share, ranks in groups
    ]


def read_history(run: Run) -> PromptHistory | None:
    """Read a run's iterations.csv; None where that is missing, older, or cut off."""
    folder = Path(run.resumed_from if isinstance(run.resumed_from, str) else run.folder)
    try:
        rows = read_rows(folder / "iterations.csv")
        ranks = int(run.world_size)
        first = [row for row in rows if row["rank"] == "0"]
        latency_ms = [float(row["latency_ms"]) for row in first]
        shares = [
            [int(row["tokens"]) / int(run.seq_len) for row in rows if row["rank"] == str(rank)]
            for rank in range(ranks)
        ]
        efficiency = [row["capacity_efficiency"] for row in first]
    except (KeyError, ValueError, TypeError):
        return None
    if not latency_ms or any(len(prompt_shares) != len(latency_ms) for prompt_shares in shares):
        return None
    efficiency_known = all(efficiency)
    ideal_ms = (
        [float(part) * ms for part, ms in zip(efficiency, latency_ms, strict=True)]
        if efficiency_known
        else []
    )
    return PromptHistory(latency_ms, ideal_ms, shares)
