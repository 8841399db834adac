"""All runs under some folders as one pandas table: a row a run, a column a figure.

    runs = load_runs([Path("outputs/sweeps/2026-03-01/12-00-00-abc")])
    runs[runs.status == "complete"].groupby("partitioner").latency_ms_median.median()

Scalars of results.json keep their names, nested ones are joined by a dot, and a list with one entry a rank
becomes a column a rank: `busy_ms.0`, `busy_ms.1`. What a run lacks (it failed, or is of an older version) is
empty. Columns that need other runs come from `with_comparisons`; docs/metrics.md lists them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ringexp.config import register
from ringexp.errors import UserError
from ringexp.tracking import metrics
from ringexp.tracking.files import CONFIG, RESULTS

Runs = Any
"""A pandas.DataFrame with a row a run; Any, since pandas has no types that say what a selection is."""

Run = Any
"""A row of it, a pandas.Series."""

COMPLETE, FAILED, INTERRUPTED, NOT_RUN = "complete", "failed", "interrupted", "not run"

IDENTITY = (
    "model",
    "profile",
    "seq_len",
    "layout",
    "partitioner",
    "shard",
    "kernel",
    "transport",
    "throttle",
)
"""Columns that say what a run was; the table of the page can be filtered by them."""

FIGURES = (
    "latency_ms_median",
    "latency_ms_spread",
    "latency_ms_back_to_back",
    "latency_ms_predicted",
    "prediction_error",
    "speedup_over_contiguous_even",
    "speedup_over_even",
    "speedup_over_single",
    "capacity_efficiency",
    "capacity_efficiency_back_to_back",
    "slowdown",
    "efficiency",
    "tflops",
    "error_max_abs",
    "error_single_max_abs",
)
"""Columns that every table has, whatever the runs lack."""

SINGLE = ("references.single_ms", "references.single_back_to_back_ms")

CONTEXT = ("model", "shape", "settings", "world_size", "hardware", "kernel_asked", "transport")
"""Runs that differ in one of these are never compared; kernel=auto may choose another for another length."""

DRIFTING = "speeds that change"
"""The pattern of profiles with a drift: runs of those are compared with each other only."""


def load_runs(folders: Sequence[Path]) -> Runs:
    """Every run under `folders`, in the order of their folders; a run that two of them have counts once.

    Raises UserError for a folder that is not there or is no folder, and if there is no run at all.
    """
    import pandas as pd

    for folder in folders:
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder} {what}; give a folder of runs, such as outputs/sweeps/DATE/TIME")
    paths = list(dict.fromkeys(path.resolve() for folder in folders for path in _run_folders(folder)))
    rows = [_read(path) for path in paths]
    kept = {row["folder"] for row in rows}
    rows = [row for row in rows if row.get("resumed_from") not in kept - {row["folder"]}]
    if not rows:
        raise UserError(
            f"no runs in {', '.join(map(str, folders))}; give one whose subfolders have {RESULTS}, such as "
            "outputs/sweeps/DATE/TIME"
        )
    frame = pd.DataFrame(rows)
    wanted = [*IDENTITY, *FIGURES, "resumed_from", "reason", "exact", "slow_percent", "fast_percent"]
    wanted += [*CONTEXT, "pattern", "drift", *SINGLE, "adaptation.total_ms"]
    missing = [name for name in dict.fromkeys(wanted) if name not in frame]
    frame = frame.assign(**dict.fromkeys(missing))
    for name in (*CONTEXT, *IDENTITY, "drift", "run", "reason"):
        frame[name] = frame[name].astype(object).where(frame[name].notna(), "")
    numbers: list[str] = [
        *FIGURES,
        "slow_percent",
        "fast_percent",
        "seq_len",
        "world_size",
        *SINGLE,
    ]
    for name in numbers:
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return with_comparisons(frame)


def with_comparisons(frame: Runs) -> Runs:
    """The same with the figures that need more than one figure of results.json, or another run.

    speedup_over_contiguous_even is against the run with contiguous layout and even partitioner of the same
    context, profile and length.
    """
    latency = frame["latency_ms_median"]
    keys = [*CONTEXT, "throttle", "profile", "seq_len"]
    in_a_row = frame["references.single_back_to_back_ms"] / frame["references.single_ms"]
    is_base = (frame.layout == "contiguous") & (frame.partitioner == "even") & (frame["shard"] == "tokens")
    base = frame[is_base & (frame.status == COMPLETE)].groupby(keys, dropna=False).latency_ms_median.last()
    base_ms = frame[keys].merge(base.rename("base_ms").reset_index(), on=keys, how="left").base_ms
    return frame.assign(
        speedup_over_contiguous_even=metrics.speedup(latency, base_ms.set_axis(frame.index)),
        speedup_over_single=metrics.speedup(latency, frame["references.single_ms"]),
        prediction_error=metrics.prediction_error(frame["latency_ms_predicted"], latency),
        capacity_efficiency_back_to_back=frame["capacity_efficiency"]
        * metrics.speedup(frame["latency_ms_back_to_back"], latency)
        * in_a_row.fillna(1.0),
    )


def complete(frame: Runs) -> Runs:
    """The runs that ended with a right result."""
    return frame[frame.status == COMPLETE]


def contexts(frame: Runs) -> list[tuple[str, Runs]]:
    """Complete runs that may share a figure, with what sets them apart as a name; the largest group first.

    In a group the percentage of the slowest rank (of the fastest one's) and the length say which profile and
    prompt it is. Equal ranks are 100 % of that axis in every group that could have them.
    """
    import pandas as pd

    done = complete(frame)
    equal = done[(done.slow_percent == 100) & (done.pattern != DRIFTING)]
    keys, shared = [*CONTEXT, "throttle", "pattern"], [*CONTEXT, "fast_percent"]
    groups = [
        group for _, group in done[~done.index.isin(equal.index)].groupby(keys, dropna=False, sort=False)
    ]
    found = []
    for group in groups:
        first = group.iloc[0]
        found.append(
            (first, group if first.pattern == DRIFTING else pd.concat([group, _alike(equal, first, shared)]))
        )
    taken = {index for _, group in found for index in group.index}
    rest = equal[~equal.index.isin(taken)]
    found += [(group.iloc[0], group) for _, group in rest.groupby(shared, dropna=False, sort=False)]
    varying = [key for key in keys if len({str(first[key]) for first, _ in found}) > 1]
    if "model" in varying:  # whose name says its shape
        varying.remove("shape")
    named = [
        (", ".join(_named(key, first[key]) for key in varying), _one_a_cell(group)) for first, group in found
    ]
    return sorted(named, key=lambda pair: -len(pair[1]))


def ranks_of(row: Run, name: str) -> list[float]:
    """The entries of a figure with one a rank, in rank order; empty where the run lacks it."""
    import pandas as pd

    world_size = row["world_size"]  # missing in a run that never began
    columns = [f"{name}.{rank}" for rank in range(0 if world_size != world_size else int(world_size))]
    values = [row.get(column) for column in columns]
    return [] if any(pd.isna(value) for value in values) else [float(value) for value in values]


def csv_text(frame: Runs) -> str:
    """All columns as CSV: what a run was, how it ended, its figures, then everything else."""
    first = ["run", "status", *IDENTITY, "world_size", "slow_percent", *FIGURES, "exact"]
    rest = [name for name in frame.columns if name not in first and name not in ("reason", "folder")]
    return frame[[*first, *rest, "reason", "folder"]].to_csv(index=False)


def _alike(frame: Runs, row: Run, keys: Sequence[str]) -> Runs:
    for key in keys:
        frame = frame[frame[key] == row[key]]
    return frame


def _one_a_cell(group: Runs) -> Runs:
    """Of several runs of one thing the latest."""
    cell = ["slow_percent", "profile", "seq_len", "layout", "partitioner", "shard"]
    if "environment.time" in group:
        group = group.sort_values("environment.time", kind="stable")
    return group.drop_duplicates(cell, keep="last").sort_index()


def _named(key: str, value: Any) -> str:
    at = "{}" if value == DRIFTING else "ranks at {} %"
    words = {"kernel_asked": "kernel {}", "pattern": at, "world_size": "{:.0f} ranks"}
    return words.get(key, "{}").format(value)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders of runs in the order of a sweep's jobs, also of runs that Hydra composed and nobody began."""
    begun = {path.parent for path in folder.rglob(RESULTS)}
    composed = {path.parent.parent for path in folder.rglob(".hydra/overrides.yaml")}
    return iter(sorted(begun | composed, key=_job_order))


def _job_order(path: Path) -> tuple[str, int, str]:
    number = path.name.split("_")[0]
    return (str(path.parent), int(number) if number.isdigit() else -1, path.name)


def _read(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": folder.name, "folder": str(folder)}
    try:
        config = read_config(folder)
        path = folder / RESULTS
        results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"status": NOT_RUN}
        status = results.pop("status")
        if "command" in (results.get("environment") or {}):
            program, *arguments = results["environment"]["command"]
            results["environment"]["command"] = f"{program} {shlex.join(arguments)}"
        row |= _identity(config) if config else {}
        row |= dict(_flat(results, len(config["hetero"]["percentages"]) if config else 0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # what is not a run's own file
        return row | {"status": FAILED, "reason": f"{RESULTS} or {CONFIG} is damaged: {error}"}
    if status == "planned":
        status, row["reason"] = FAILED, "it did not finish"
    elif status == NOT_RUN:
        row["reason"] = "it was not begun"
    elif status == COMPLETE and results.get("exact") is False:
        status = FAILED
        row["reason"] = results.get("why_inexact") or f"its output is wrong by {results.get('error_max_abs')}"
    return row | {"status": status} | _hardware(results)


def read_config(folder: Path) -> dict[str, Any] | None:
    """The settings of a run: its own record, or what Hydra composed if it never began."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    register()  # what Hydra composed has interpolations still
    for path in (folder / CONFIG, folder / ".hydra" / "config.yaml"):
        if path.exists():
            try:
                return OmegaConf.to_container(OmegaConf.load(path), resolve=True)  # type: ignore[return-value]
            except YAMLError as error:
                raise ValueError(" ".join(str(error).split())) from error
    return None


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    percentages = [float(value) for value in config["hetero"]["percentages"]]
    drift = _drift(config["hetero"].get("drift") or {})
    slowest, fastest = min(percentages), max(percentages)
    profile = "/".join(f"{value:g}" for value in percentages)
    model = config["model"]
    shape = _shape(model)
    asked = {"prefetch_hops": config["transport"].get("prefetch_hops"), "tile": config.get("tile")}
    asked |= {name: config.get(name) for name in ("cuda_graph", "prompt_lengths")}
    asked |= {"chunk_tokens": model.get("chunk_tokens")}
    return {
        "model": model["name"],
        "profile": f"{profile}, {drift}" if drift else profile,
        "drift": drift,
        "seq_len": config["seq_len"],
        "layout": config["layout"]["name"],
        "partitioner": config["partitioner"]["name"],
        "shard": config.get("shard", "tokens"),
        "kernel": config["kernel"]["name"],
        "transport": config["transport"]["name"],
        "throttle": config["hetero"].get("throttle"),
        "kernel_asked": config["kernel"]["name"],
        "settings": ", ".join(f"{name}={value}" for name, value in asked.items() if value is not None),
        "shape": shape,
        "world_size": len(percentages),
        "slow_percent": 100 * slowest / fastest,
        "fast_percent": fastest,
        "pattern": DRIFTING if drift else _pattern(percentages),
    }


def _drift(drift: dict[str, Any]) -> str:
    """A drift in words, such as "ramp to 100/50 at 10 over 10"; nothing for none."""
    if drift.get("kind", "none") == "none":
        return ""
    to = "/".join(f"{value:g}" for value in drift["to"])
    return f"{drift['kind']} to {to} at {drift['at']}" + (
        f" over {drift['over']}" if drift["kind"] != "step" else ""
    )


def _pattern(percentages: Sequence[float]) -> str:
    """The profile but for the slowest rank, such as 100/*: what an axis of percentages leaves as it is."""
    if len(set(percentages)) == 1:
        return "equal"
    slowest = percentages.index(min(percentages))
    return "/".join("*" if rank == slowest else f"{value:g}" for rank, value in enumerate(percentages))


def _shape(model: dict[str, Any]) -> str | None:
    """What the model's calibration rows are kept under, but for the kernel; None for an older config."""
    from ringexp.config import AttentionModelConfig, FmsModelConfig
    from ringexp.models.shapes import shape_of

    kind = AttentionModelConfig if model.get("kind") == "attention" else FmsModelConfig
    try:
        return shape_of(kind(**model))
    except TypeError:
        return None


def _hardware(results: dict[str, Any]) -> dict[str, Any]:
    machine = (results.get("environment") or {}).get("machine") or {}
    names = machine.get("gpus") or ([machine["cpu"]] if machine.get("cpu") else [])
    if not names:
        return {}
    counted = {name: names.count(name) for name in names}
    return {"hardware": ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counted.items())}


def _flat(values: dict[str, Any], world_size: int, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(column, scalar) of nested results; of lists those with one entry a rank, and only at the top."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, 0, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield prefix + name, value
        elif len(value) == world_size and not name.endswith("_iterations"):
            ranks = {f"{name}.{rank}": entry for rank, entry in enumerate(value)}
            yield from _flat(ranks, 0, prefix)
