"""`ringexp report FOLDER ...`: make a report of finished runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ringexp.cli.terminal import keep_printing
from ringexp.config import TrackerConfig
from ringexp.errors import RunFailed, UserError
from ringexp.interrupts import end_interrupted, is_interrupt
from ringexp.printable import plain

DESCRIPTION = """\
Make one report of all runs under some folders: a page that opens without a network, with headlines, plots and
a table to sort and filter; the plots as PNG; and every figure of every run as CSV.

    ringexp report outputs/sweeps/2026-03-01/12-00-00-abc
    ringexp report outputs/sweeps/2026-03-01 outputs/sweeps/2026-03-02 --out report

A sweep (ringexp sweep ...) makes its report by itself when it ends. The planner, a page to try out speeds,
lengths and layouts, is written beside it. The planner alone, without any runs:

    ringexp report --planner planner.html"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command's options; None: those of this process."""
    parser = argparse.ArgumentParser(
        "ringexp report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="searched for runs at any depth"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where index.html, runs.csv and figures/ go (FOLDER/report of the first FOLDER)",
    )
    parser.add_argument(
        "--tracker",
        choices=("offline", "online", "disabled"),
        help="log the report to wandb this way (default: WANDB_MODE, else offline)",
    )
    parser.add_argument("--project", help="wandb project (default: WANDB_PROJECT, else ringexp)")
    parser.add_argument("--entity", help="wandb entity (default: WANDB_ENTITY, else the login's)")
    parser.add_argument("--group", help="wandb group (default: WANDB_RUN_GROUP, else the sweep's)")
    parser.add_argument("--planner", type=Path, metavar="FILE", help="write the planner alone, without runs")
    parsed = parser.parse_args(arguments)
    if bool(parsed.folders) == bool(parsed.planner):
        parser.error("give folders of runs, or --planner FILE alone")
    return parsed


def main() -> None:
    """Write a report and end with exit code 0; 2: bad input, 1: the disk is full, 130: Ctrl-C."""
    arguments = parse()
    keep_printing()
    if arguments.planner:
        _write_planner(arguments.planner)
        return
    out = arguments.out or arguments.folders[0] / "report"
    try:
        from ringexp.report.build import write_report
        from ringexp.report.page import counts

        report = write_report(arguments.folders, out, _tracker(arguments))
    except (UserError, RunFailed) as error:
        print(f"ringexp report: error: {plain(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except BaseException as error:
        if not is_interrupt(error):
            raise
        end_interrupted("ringexp report: interrupted; an earlier report is unchanged")
    print(plain(counts(report.runs)))
    print(f"Report: {plain(report.page)}")


def _tracker(arguments: argparse.Namespace) -> TrackerConfig:
    """Return the wandb settings: from the command's options, else from the environment."""
    (folder, *others) = (folder.resolve() for folder in arguments.folders)
    sweep = None if others else f"{folder.parent.name} {folder.name}"
    group = arguments.group or os.environ.get("WANDB_RUN_GROUP") or sweep
    return TrackerConfig(arguments.tracker, arguments.project, arguments.entity, group)


def _write_planner(path: Path) -> None:
    from ringexp.atomic import write_atomically
    from ringexp.web import planner_page

    try:
        path.parent.stat()  # a missing folder is more likely a typing error than a wish
        write_atomically(path, planner_page())
    except OSError as error:
        print(f"ringexp report: error: {plain(path)} cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    print(f"Planner: {plain(path)}")
