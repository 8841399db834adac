"""The measured runs of a report, as the planner's page can be set to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ringexp.config import DEFAULT_TILE, AttentionModelConfig
from ringexp.planning import RankCost
from ringexp.report.folder import read_config, read_results
from ringexp.report.frame import Run, Runs, complete, ranks_of
from ringexp.report.palette import RANK_COLOURS
from ringexp.report.planner.shapes import SHAPES, Shape

ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
PARTITIONERS = ("even", "lut", "balanced")
"""Those of the page."""


@dataclass(frozen=True)
class MeasuredRun:
    """Ranks, prompt and hops of some runs, as the page's settings; what it is not told is None.

    costs: that the plans were made by, one a rank, or None: not known. measured: latency in ms by layout and
    partitioner, of every run with these ranks and this prompt.
    """

    name: str
    settings: dict[str, Any]
    costs: list[RankCost] | None
    measured: dict[str, dict[str, float]]


def measured_runs(groups: Iterable[tuple[str, Runs]]) -> list[MeasuredRun]:
    """One for each profile and length of each group (`frame.contexts`), in their order.

    Runs of shapes that the page cannot describe, without measured speeds, or with more ranks than it has room
    for, are left out.
    """
    return [run for context, group in groups for run in _of_group(context, group)]


def _of_group(context: str, group: Runs) -> Iterator[MeasuredRun]:
    runs = complete(group)
    runs = runs[(runs["shard"] == "tokens") & runs.partitioner.isin(PARTITIONERS)]
    for (profile, seq_len), alike in runs.groupby(["profile", "seq_len"], sort=False):
        ways = [way for _, way in alike.iterrows()]
        run = max(ways, key=lambda way: (way.layout == "zigzag", way.partitioner == "balanced"))
        config = read_config(Path(run.folder)) or {}
        shape = _shape(config.get("model") or {}) if run["shape"] else None
        speeds = ranks_of(run, "speeds")
        if shape is None or not 0 < len(speeds) <= len(RANK_COLOURS):
            continue
        costs = _costs(run)
        measured: dict[str, dict[str, float]] = {}
        for way in ways:
            measured.setdefault(way.layout, {})[way.partitioner] = float(way.latency_ms_median)
        emulated = "emulated" if run.get("throttle_emulated") is True else ""
        yield MeasuredRun(
            ", ".join(filter(None, (f"{profile} %", f"{seq_len:.0f} tokens", emulated, context))),
            {
                "speeds": [100 * (speed / max(speeds)) for speed in speeds],
                "seqLen": int(seq_len),
                "layout": run.layout,
                "split": run.partitioner,
                "gbps": _positive(run, "hop_gbps"),
                "hopMs": _positive(run, "hop_latency_ms"),
                "hops": "copy" if run.transport == "ipc" else "forward",
                "mask": "causal",
                "tflops": max(speeds),
                "fixedMs": median(cost.fixed_ms for cost in costs) or None if costs else None,
                "tile": config.get("tile") or DEFAULT_TILE.get(str(run.get("environment.machine.device"))),
                "shape": asdict(shape),
            },
            costs,
            measured,
        )


def _positive(run: Run, name: str) -> float | None:
    """A figure of a run; None where it is missing or no longer a number that a slider has."""
    value = run.get(name)
    return float(value) if value is not None and value == value and value > 0 else None


def _shape(model: dict[str, Any]) -> Shape | None:
    """Of a run's model config; None where the page cannot describe it."""
    itemsize = ITEMSIZE.get(str(model.get("dtype")))
    if itemsize is None:
        return None
    if model.get("kind") == "attention":
        config = AttentionModelConfig(**model)
        emb_dim = config.emb_dim if config.projections else 0
        sizes = (config.num_heads, config.num_kv_heads, config.head_dim)
        shape = Shape(config.name, 1, config.batch_size, emb_dim, *sizes, itemsize=itemsize)
        return shape if config.causal else None
    known = {shape.name: shape for shape in SHAPES}.get(str(model.get("name")))
    as_named = not any(model.get(name) for name in ("chunk_tokens", "checkpoint", "overrides"))
    return replace(known, batch=model["batch_size"], itemsize=itemsize) if known and as_named else None


def _costs(run: Run) -> list[RankCost] | None:
    """As the run's plan had them; the page knows of no measured time of one device."""
    found = (read_results(Path(run.folder)) or {}).get("costs")
    return [RankCost(**cost | {"alone_ms": None}) for cost in found] if found else None
