"""The report of some runs: runs.csv, figures as PNG, one page with both, and the planner set to these runs.

It is logged to wandb as the runs were.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringexp.config import TrackerConfig
from ringexp.errors import UserError
from ringexp.report.figures import FIGURES, calibration_curves
from ringexp.report.folder import read_config
from ringexp.report.frame import Runs, complete, contexts, csv_text, load_runs
from ringexp.report.headlines import headlines
from ringexp.report.page import Drawn, page
from ringexp.report.planner import planner_page
from ringexp.report.planner.runs import MeasuredRun, measured_runs
from ringexp.tracking.files import write_atomically
from ringexp.tracking.wandb_run import WandbRun

if TYPE_CHECKING:
    from ringexp.calibration.table import SpeedRow

MOST_CONTEXTS = 4
"""Figures are drawn for this many groups of runs that cannot share one; runs.csv and the table have all."""


@dataclass(frozen=True)
class Report:
    """What was written: the page; the planner, runs.csv and figures/ are beside it. And what it is about."""

    page: Path
    runs: Runs


def write_report(folders: Sequence[Path], out: Path, tracker_mode: str | None = None) -> Report:
    """Report on all runs under `folders` in the folder `out`, made if need be.

    tracker_mode: for wandb, in place of what the runs had. Raises UserError if there are no runs, or if `out`
    cannot be written.
    """
    runs = load_runs(folders)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "runs.csv", csv_text(runs))
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror}; choose another folder with --out"
        ) from error
    groups = contexts(runs)
    notes = []
    if len(groups) > MOST_CONTEXTS:
        rest = ", ".join(name for name, _ in groups[MOST_CONTEXTS:])
        notes.append(f"Figures are of the {MOST_CONTEXTS} largest groups of runs; not of: {rest}")
    drawn: list[Drawn] = []
    attempts = list(_run_figures(groups[:MOST_CONTEXTS]))
    tables: dict[str, list[SpeedRow]] = {}
    try:
        tables = _calibrations(folders, runs)
    except UserError as error:  # a damaged table
        notes.append(str(error))
    attempts += _calibration_figures(tables)
    for attempt in attempts:
        try:
            drawn += attempt.drawn()
        except Exception as error:  # one figure that fails is no reason to have none
            notes.append(f"Figure {attempt.name} could not be drawn: {type(error).__name__}: {error}")
            print(f"ringexp.report: {notes[-1]}", file=sys.stderr)
    for figure in drawn:
        write_atomically(out / "figures" / f"{figure.name}.png", figure.png)
    found = [(name, headlines(group)) for name, group in groups]
    title = f"ringexp: {', '.join(folder.resolve().name for folder in folders)}"
    measured: list[MeasuredRun] = []
    try:
        measured = measured_runs(groups)
    except Exception as error:  # the planner without runs is better than no report
        notes.append(f"The planner has no runs: {type(error).__name__}: {error}")
    write_atomically(out / "planner.html", planner_page(measured, report="index.html"))
    write_atomically(out / "index.html", page(title, runs, found, drawn, notes))
    _log(folders, runs, out, drawn, tracker_mode)
    return Report(out / "index.html", runs)


@dataclass(frozen=True)
class _Attempt:
    """A figure to be drawn."""

    name: str
    title: str
    caption: str
    context: str
    draw: Callable[[], Any]

    def drawn(self) -> list[Drawn]:
        """The figure; nothing where the runs do not have its axes."""
        figure = self.draw()
        if figure is None:
            return []
        png = io.BytesIO()
        figure.savefig(png, format="png")
        return [Drawn(self.name, self.title, self.caption, self.context, png.getvalue())]


def _run_figures(groups: Sequence[tuple[str, Runs]]) -> Iterator[_Attempt]:
    for number, (context, group) in enumerate(groups):
        drifting = (group.drift != "").any()
        for kind in (kind for kind in FIGURES if kind.of_drift == drifting):
            name = kind.name + (f"_{number}" if number else "")
            yield _Attempt(name, kind.title, kind.caption, context, partial(kind.draw, group))


def _calibration_figures(tables: dict[str, list[SpeedRow]]) -> list[_Attempt]:
    return [
        _Attempt(
            "calibration" + (f"_{number}" if number else ""),
            "Calibration",
            f"Speeds of a rank ({what}): as measured, as `lut` reads them, and as `formula` puts them.",
            "",
            partial(calibration_curves, rows),
        )
        for number, (what, rows) in enumerate(tables.items())
    ]


def _calibrations(folders: Sequence[Path], runs: Runs) -> dict[str, list[SpeedRow]]:
    """Rows of the tables these runs planned with: of their shapes and throttles, by what they share; of what
    several tables have, the newest.

    Raises UserError for a damaged table.
    """
    from ringexp.calibration.table import SpeedTable, newest

    shapes = {f"{run['shape']}-{run.kernel}" for _, run in complete(runs).iterrows()}
    throttles = set(complete(runs).throttle)
    found: dict[str, list[SpeedRow]] = {}
    for row in newest(row for path in _speed_tables(folders, runs) for row in SpeedTable(path).load()):
        if row.shape in shapes and row.throttle in throttles:
            where = f"{row.hardware}, throttle {row.throttle}, ranks a device: {row.ranks_per_device}"
            where += f", beside {row.beside} %" if row.beside else ""
            found.setdefault(f"{where}, {row.shape}", []).append(row)
    return found


def _speed_tables(folders: Sequence[Path], runs: Runs) -> list[Path]:
    """calibration/speeds.csv of the output root above each folder, or of the one the runs name."""
    found = []
    for folder in folders:
        above = [folder.resolve(), *folder.resolve().parents]
        near = [path for root in above if (path := root / "calibration" / "speeds.csv").exists()]
        found += near[:1]
    if not found:
        named = (read_config(Path(folder)) or {} for folder in complete(runs).folder[:1])
        found = [
            Path(config.get("output_root", "outputs")) / "calibration" / "speeds.csv" for config in named
        ]
    return list(dict.fromkeys(found))


def _log(folders: Sequence[Path], runs: Runs, out: Path, drawn: Sequence[Drawn], mode: str | None) -> None:
    """The figures and the table as a wandb run of type `report`, in the group of the runs."""
    done = complete(runs)
    if done.empty:
        return
    settings = (read_config(Path(done.folder.iloc[0])) or {}).get("tracker") or {}
    tracker = TrackerConfig(**{name: settings[name] for name in vars(TrackerConfig()) if name in settings})
    tracker.mode = mode or tracker.mode
    record = WandbRun(out, tracker, {"folders": [str(folder) for folder in folders]}, job_type="report")
    record.log_media(
        {figure.name: out / "figures" / f"{figure.name}.png" for figure in drawn}, {"runs": runs}
    )
    record.finish({"runs_complete": len(done), "runs": len(runs)})
