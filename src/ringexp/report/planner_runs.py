"""The measured runs of a report, as the planner's page can be set to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from ringexp.choices import TRANSPORTS
from ringexp.config import DEFAULT_TILE
from ringexp.models.shape import ITEMSIZE, ModelShape
from ringexp.planning import RankCost
from ringexp.printable import plain
from ringexp.report.folder import Damaged, read_config, read_record, result_of
from ringexp.report.frame import Run, Runs, complete, each_run, ranks_of, where
from ringexp.report.measured_costs import costs_of
from ringexp.report.roles import balancing
from ringexp.stored import JsonObject, JsonValue
from ringexp.web.measured_run import PARTITIONERS, MeasuredRun
from ringexp.web.palette import RANK_COLOURS
from ringexp.web.shapes import PageShape, offered_shapes, page_shape


def measured_runs(groups: Iterable[tuple[str, Runs]]) -> list[MeasuredRun]:
    """Return a measured run for each profile and length of each group (`frame.contexts`), in their order.

    Left out are runs without measured speeds, runs whose shape the page cannot describe, and runs with more
    ranks than the page can show.
    """
    return [run for context, group in groups for run in _of_group(context, group)]


def _of_group(context: str, group: Runs) -> Iterator[MeasuredRun]:
    runs = complete(group)
    runs = where(runs, (runs["split"] == "tokens") & runs.partitioner.isin(PARTITIONERS))
    for profile, seq_len in dict.fromkeys(zip(runs.profile, runs.seq_len, strict=True)):
        ways = list(each_run(where(runs, (runs.profile == profile) & (runs.seq_len == seq_len))))
        run = max(ways, key=lambda way: (way.layout == "zigzag", way.partitioner in balancing()))
        config = _config(run)
        shape = _shape(config.get("model")) if bool(run["shape"]) else None
        speeds = ranks_of(run, "speeds")
        if shape is None or not 0 < len(speeds) <= len(RANK_COLOURS) or not min(speeds) > 0:
            continue
        costs, transport = _costs(run), TRANSPORTS.get(run.transport)
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
                "hops": "copy" if transport and transport.direct else "forward",
                "mask": "causal",
                "tflops": max(speeds),
                "fixedMs": median(cost.fixed_ms for cost in costs) or None if costs else None,
                "tile": _count(config.get("tile"))
                or DEFAULT_TILE.get(str(run.get("environment.machine.device"))),
                "shape": shape,
            },
            costs,
            measured,
        )


def _positive(run: Run, name: str) -> float | None:
    """Return a figure of a run; None where it is missing or not above 0, as a slider needs it."""
    value = run.get(name)
    return float(value) if value is not None and value == value and value > 0 else None


def _count(value: JsonValue) -> int | None:
    """Return a whole number above 0, or None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value < 2**31 else None


def _shape(model: JsonValue) -> PageShape | None:
    """Return the shape of a run's model config; None where the page cannot describe it."""
    if not isinstance(model, dict):
        return None
    itemsize, batch = ITEMSIZE.get(str(model.get("dtype"))), _count(model.get("batch_size"))
    if itemsize is None or batch is None:
        return None
    name = plain(model.get("name"))
    if model.get("kind") == "attention":
        emb_dim = _count(model.get("emb_dim"))
        sizes = [_count(model.get(size)) for size in ("num_heads", "num_kv_heads", "head_dim")]
        heads, kv_heads, head_dim = sizes
        if not (emb_dim and heads and kv_heads and head_dim) or model.get("causal") is not True:
            return None
        module = ModelShape(
            emb_dim=emb_dim,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            projections=model.get("projections") is True,
            batch_size=batch,
            itemsize=itemsize,
        )
        return page_shape(name, module)
    offered = offered_shapes().get(name)
    as_named = not any(model.get(part) for part in ("chunk_tokens", "checkpoint", "overrides"))
    if not offered or not as_named:
        return None
    return page_shape(name, replace(offered, batch_size=batch, itemsize=itemsize))


def _costs(run: Run) -> list[RankCost] | None:
    """Return the costs of the run's plan; the page does not use the measured time of one device alone."""
    try:
        record = read_record(Path(run.folder))
        costs = costs_of(result_of(record)) if record else []
    except Damaged:
        return None
    fits = len(costs) == run.world_size
    return [replace(cost, alone_ms=None) for cost in costs] if costs and fits else None


def _config(run: Run) -> JsonObject:
    """Return the settings of a run, as far as it has them."""
    try:
        return read_config(Path(run.folder)) or {}
    except Damaged:
        return {}
