"""All runs under some folders as one pandas table: one row per run, one column per figure.

    runs = load_runs([Path("outputs/sweeps/2026-03-01/12-00-00-abc")])
    runs[runs.status == "complete"].groupby("partitioner").latency_ms_median.median()

Scalars of results.json keep their names, nested ones are joined by a dot, and a list with one entry per
rank becomes one column per rank: `busy_ms.0`, `busy_ms.1`. A figure that a run lacks, because the run failed
or is of an older version, is empty. Columns that need other runs come from `with_comparisons`;
docs/metrics.md lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from ringexp.errors import UserError
from ringexp.printable import plain
from ringexp.report.identity import DRIFTING
from ringexp.report.roles import baselines
from ringexp.report.row import COMPLETE, FAILED, INTERRUPTED, NOT_RUN, read_row
from ringexp.tracking import metrics
from ringexp.tracking.files import RESULTS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COMPLETE", "FAILED", "INTERRUPTED", "NOT_RUN"]

Runs: TypeAlias = "pd.DataFrame"
"""A table with one row per run."""

Run: TypeAlias = "pd.Series"
"""A row of it."""

IDENTITY = (
    "model",
    "profile",
    "seq_len",
    "layout",
    "partitioner",
    "split",
    "kernel",
    "transport",
    "throttle",
)
"""Columns of the identity of a run, by which the table of the page can be filtered."""

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


def load_runs(folders: Sequence[Path]) -> Runs:
    """Load every run under `folders`, in the order of their folders. A run that two folders have counts once.

    Raises UserError for a folder that is not there or is no folder, and if there is no run at all.
    """
    import pandas as pd

    for folder in folders:
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder} {what}; give a folder of runs, such as outputs/sweeps/DATE/TIME")
    paths = list(dict.fromkeys(path.resolve() for folder in folders for path in _run_folders(folder)))
    rows = [read_row(path) for path in paths]
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
        "adaptation.total_ms",
        *SINGLE,
    ]
    for name in numbers:
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return with_comparisons(frame)


def with_comparisons(frame: Runs) -> Runs:
    """Add the figures that need more than one figure of results.json, or another run.

    speedup_over_contiguous_even is against the run with contiguous layout and even partitioner of the same
    context, profile and length.
    """
    latency = frame["latency_ms_median"]
    keys = [*CONTEXT, "throttle", "profile", "seq_len"]
    in_a_row = frame["references.single_back_to_back_ms"] / frame["references.single_ms"]
    is_base = (
        (frame.layout == "contiguous") & frame.partitioner.isin(baselines()) & (frame["split"] == "tokens")
    )
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


def where(runs: Runs, mask: object) -> Runs:
    """Return the runs for which a column or list of truth values is true."""
    return cast("Runs", runs.loc[mask])  # type: ignore[index]


def each_run(runs: Runs) -> Iterator[Run]:
    """Yield the runs one by one."""
    for _, run in runs.iterrows():
        yield run


def complete(frame: Runs) -> Runs:
    """Return the runs that ended with a right result."""
    return where(frame, frame.status == COMPLETE)


def described(frame: Runs) -> Runs:
    """Return the complete runs whose identity is known. A results.json alone may not tell it."""
    done = complete(frame)
    identified = done.seq_len.notna() & done.world_size.notna()
    for name in ("profile", "layout", "partitioner"):
        identified &= done[name] != ""
    return where(done, identified)


def contexts(frame: Runs) -> list[tuple[str, Runs]]:
    """Group the runs that may share a figure, each group under a name that tells it from others.

    Only `described` runs count. The largest group comes first.

    In a group the percentage of the slowest rank (of the fastest one's) and the length say which profile and
    prompt it is. Equal ranks are 100 % of that axis in every group that could have them.
    """
    import pandas as pd

    done = described(frame)
    equal = where(done, (done.slow_percent == 100) & (done.pattern != DRIFTING))
    keys, shared = [*CONTEXT, "throttle", "pattern"], [*CONTEXT, "fast_percent"]
    groups = [
        group for _, group in done[~done.index.isin(equal.index)].groupby(keys, dropna=False, sort=False)
    ]
    named_groups = []
    for group in groups:
        first = group.iloc[0]
        named_groups.append(
            (first, group if first.pattern == DRIFTING else pd.concat([group, _alike(equal, first, shared)]))
        )
    grouped_rows = {index for _, group in named_groups for index in group.index}
    rest = equal[~equal.index.isin(grouped_rows)]
    named_groups += [(group.iloc[0], group) for _, group in rest.groupby(shared, dropna=False, sort=False)]
    varying = [key for key in keys if len({str(first[key]) for first, _ in named_groups}) > 1]
    if "model" in varying:  # whose name says its shape
        varying = [key for key in varying if key != "shape"]
    named = [
        (", ".join(_named(key, first[key]) for key in varying), _one_per_cell(group))
        for first, group in named_groups
    ]
    return sorted(named, key=lambda pair: -len(pair[1]))


def ranks_of(row: Run, name: str) -> list[float]:
    """Return a figure that has one entry per rank, in rank order; nothing where the run lacks it."""
    world_size = number_in(row, "world_size")  # missing in a run that never began
    values = [number_in(row, f"{name}.{rank}") for rank in range(int(world_size or 0))]
    present = [value for value in values if value is not None]
    return present if len(present) == len(values) else []


def number_in(row: Run, column: str) -> float | None:
    """Return a number of a row; None where the run lacks it."""
    value = cast("float | None", row.get(column))
    return None if value is None or value != value else float(value)


def csv_text(frame: Runs) -> str:
    """Return all columns as CSV: what a run was, how it ended, its figures, then everything else."""
    first = ["run", "status", *IDENTITY, "world_size", "slow_percent", *FIGURES, "exact"]
    rest = [name for name in frame.columns if name not in first and name not in ("reason", "folder")]
    return frame[[*first, *rest, "reason", "folder"]].map(_cell).to_csv(index=False)


def _cell(value: object) -> object:
    """Return a text as one that can be written and that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _alike(frame: Runs, row: Run, keys: Sequence[str]) -> Runs:
    for key in keys:
        frame = where(frame, frame[key] == row[key])
    return frame


def _one_per_cell(group: Runs) -> Runs:
    """Return the latest of runs that are equal in everything that figures show."""
    cell = ["slow_percent", "profile", "seq_len", "layout", "partitioner", "split"]
    if "environment.time" in group:
        group = group.sort_values("environment.time", key=lambda times: times.astype(str), kind="stable")
    return group.drop_duplicates(cell, keep="last").sort_index()


def _named(key: str, value: object) -> str:
    at = "{}" if value == DRIFTING else "ranks at {} %"
    words = {"kernel_asked": "kernel {}", "pattern": at, "world_size": "{:.0f} ranks"}
    return words.get(key, "{}").format(value)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield run folders in the order of a sweep's jobs, also those of composed runs that never began."""
    begun = {path.parent for path in folder.rglob(RESULTS)}
    composed = {path.parent.parent for path in folder.rglob(".hydra/overrides.yaml")}
    return iter(sorted(begun | composed, key=_job_order))


def _job_order(path: Path) -> tuple[str, int, str]:
    number = path.name.split("_")[0]
    return (str(path.parent), int(number) if number.isascii() and number.isdecimal() else -1, path.name)
