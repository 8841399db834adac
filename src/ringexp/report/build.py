"""The report of some runs: runs.csv, figures as PNG, one page with both, and the planner with these runs."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.atomic import write_together
from ringexp.config import TrackerConfig
from ringexp.errors import RunFailed, UserError
from ringexp.printable import plain
from ringexp.report.figures import FIGURES, calibration_curves
from ringexp.report.figures.style import drawing
from ringexp.report.frame import Runs, complete, contexts, csv_text, described, load_runs
from ringexp.report.headlines import headlines
from ringexp.report.page import Drawn, page
from ringexp.report.planner_runs import measured_runs
from ringexp.tracking.files import CONFIG, RESULTS
from ringexp.tracking.wandb_run import WandbRun
from ringexp.web import planner_page
from ringexp.web.measured_run import MeasuredRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ringexp.calibration.rows import SpeedRow

MOST_CONTEXTS = 4
"""Figures are drawn for this many groups of runs that cannot share one; runs.csv and the table have all."""


@dataclass(frozen=True)
class Report:
    """A report that was written: its runs, and its page, beside which lie planner, runs.csv and figures."""

    page: Path
    runs: Runs


def write_report(
    folders: Sequence[Path], out: Path, tracker: TrackerConfig | None = None, speeds_file: Path | None = None
) -> Report:
    """Report on all runs under `folders` in the folder `out`, made if need be.

    What the folders hold is data: it decides neither where the report goes nor what else is read.

    Args:
        folders: searched for runs at any depth.
        out: where the report goes; a report that is there already is replaced as a whole.
        tracker: how the report is logged to wandb; None: not at all.
        speeds_file: the calibration table of the runs, if none lies above their folders.

    Raises:
        UserError: there are no runs, or `out` cannot be written.
        RunFailed: the disk is full, or fails; a report that was there is as it was.
    """
    runs = load_runs(folders)
    with _written_in(out):
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    groups = contexts(runs)
    notes = _notes(runs, groups)
    attempts = list(_run_figures(groups[:MOST_CONTEXTS]))
    try:
        attempts += _calibration_figures(_calibrations(folders, runs, speeds_file))
    except UserError as error:  # a damaged table
        notes.append(plain(error))
    drawn = _drawn(attempts, notes)
    measured: list[MeasuredRun] = []
    try:
        measured = measured_runs(groups)
    except Exception as error:  # the planner without runs is better than no report
        notes.append(plain(f"The planner has no runs: {type(error).__name__}: {error}"))
    title = plain(f"ringexp: {', '.join(folder.resolve().name for folder in folders)}")
    group_headlines = [(name, headlines(group)) for name, group in groups]
    contents: dict[Path, str | bytes] = {
        out / "runs.csv": csv_text(runs),
        **{out / "figures" / f"{figure.name}.png": figure.png for figure in drawn},
        out / "planner.html": planner_page(measured, report="index.html"),
        out / "index.html": page(title, runs, group_headlines, drawn, notes),
    }
    with _written_in(out):
        write_together(contents)
    if tracker:
        _log(folders, runs, out, list(contents), tracker)
    return Report(out / "index.html", runs)


def _drawn(attempts: Sequence[_Attempt], notes: list[str]) -> list[Drawn]:
    """Draw what can be drawn; what cannot is added to `notes` and said."""
    drawn: list[Drawn] = []
    for attempt in attempts:
        try:
            drawn += attempt.drawn()
        except Exception as error:  # one figure that fails is no reason to have none
            notes.append(plain(f"Figure {attempt.name} could not be drawn: {type(error).__name__}: {error}"))
            print(f"ringexp report: {notes[-1]}", file=sys.stderr)
    return drawn


@contextmanager
def _written_in(out: Path) -> Iterator[None]:
    """Turn an error of the disk into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise RunFailed(
                f"the report in {out} cannot be written: {error.strerror}; what was there is as it was. "
                "Make room, or choose another folder with --out"
            ) from error
        raise UserError(
            f"{out} cannot be written: {error.strerror}; choose another folder with --out"
        ) from error


def _notes(runs: Runs, groups: Sequence[tuple[str, Runs]]) -> list[str]:
    """Return notes about the runs that the figures leave out."""
    notes = []
    if len(groups) > MOST_CONTEXTS:
        rest = ", ".join(name for name, _ in groups[MOST_CONTEXTS:])
        notes.append(f"Figures are of the {MOST_CONTEXTS} largest groups of runs; not of: {rest}")
    if alone := len(complete(runs)) - len(described(runs)):
        why = f"Neither their {RESULTS} nor their {CONFIG} says what they were."
        notes.append(f"Complete runs that are in the table only: {alone}. {why}")
    return notes


@dataclass(frozen=True)
class _Attempt:
    """A figure to be drawn."""

    name: str
    title: str
    caption: str
    context: str
    draw: Callable[[], Figure | None]

    def drawn(self) -> list[Drawn]:
        """Yield the figure, or nothing if the runs do not have its axes."""
        png = io.BytesIO()
        with drawing():
            figure = self.draw()
            if figure is None:
                return []
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
            f"Speeds of one rank ({what}): as measured, as `lut` reads them, and as `formula` fits them.",
            "",
            partial(calibration_curves, rows),
        )
        for number, (what, rows) in enumerate(tables.items())
    ]


def _calibrations(folders: Sequence[Path], runs: Runs, speeds_file: Path | None) -> dict[str, list[SpeedRow]]:
    """Return the table rows with the shapes and throttles of these runs, grouped by what the rows share.

    If several tables have a row, the newest counts.

    Raises UserError for a damaged table.
    """
    from ringexp.calibration.rows import newest
    from ringexp.calibration.table import SpeedTable

    shapes = {f"{run['shape']}-{run.kernel}" for _, run in complete(runs).iterrows()}
    throttles = set(complete(runs).throttle)
    rows_by_group: dict[str, list[SpeedRow]] = {}
    tables = _speed_tables(folders) or ([speeds_file] if speeds_file else [])
    for row in newest(row for path in tables for row in SpeedTable(path).load()):
        if row.shape in shapes and row.throttle in throttles:
            where = f"{row.hardware}, throttle {row.throttle}, ranks per device: {row.ranks_per_device}"
            where += f", beside {row.co_tenants} %" if row.co_tenants else ""
            rows_by_group.setdefault(f"{where}, {row.shape}", []).append(row)
    return rows_by_group


def _speed_tables(folders: Sequence[Path]) -> list[Path]:
    """Return the paths calibration/speeds.csv in the output root above each folder."""
    tables = []
    for folder in folders:
        above = [folder.resolve(), *folder.resolve().parents]
        near = [path for root in above if (path := root / "calibration" / "speeds.csv").is_file()]
        tables += near[:1]
    return list(dict.fromkeys(tables))


def _log(
    folders: Sequence[Path], runs: Runs, out: Path, files: Sequence[Path], tracker: TrackerConfig
) -> None:
    """Log the figures, the table and the report's files as a wandb run of type `report`."""
    done = complete(runs)
    if done.empty:
        return
    record = WandbRun(out, tracker, {"folders": [plain(folder) for folder in folders]}, job_type="report")
    record.log_media({path.stem: path for path in files if path.suffix == ".png"}, {"runs": runs})
    record.log_files(files)
    record.finish({"runs_complete": len(done), "runs": len(runs)})
