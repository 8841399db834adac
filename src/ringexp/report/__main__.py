"""`python -m ringexp.report FOLDER ...`: a report on runs that are there already."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ringexp.errors import UserError

DESCRIPTION = """\
Make one report of all runs under some folders: a page that opens without a network, with headlines, figures
and a table to sort and filter; its figures as PNG; and every figure of every run as CSV.

    python -m ringexp.report outputs/sweeps/2026-03-01/12-00-00-abc
    python -m ringexp.report outputs/sweeps/2026-03-01 outputs/sweeps/2026-03-02 --out report

A sweep (python -m ringexp -m ...) makes its report by itself when it ends. Beside it lies the planner, a page
to try out speeds, lengths and layouts; without any runs:

    python -m ringexp.report --planner planner.html"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m ringexp.report",
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
        help="log the report to wandb this way (default: as the runs were)",
    )
    parser.add_argument("--planner", type=Path, metavar="FILE", help="write the planner alone, without runs")
    parsed = parser.parse_args(arguments)
    if bool(parsed.folders) == bool(parsed.planner):
        parser.error("give folders of runs, or --planner FILE alone")
    return parsed


def main() -> None:
    """Exit code 0 with a report, 2 for input there can be none of."""
    arguments = parse()
    if arguments.planner:
        _write_planner(arguments.planner)
        return
    out = arguments.out or arguments.folders[0] / "report"
    try:
        from ringexp.report.build import write_report
        from ringexp.report.page import counts

        report = write_report(arguments.folders, out, arguments.tracker)
    except UserError as error:
        print(f"ringexp.report: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{counts(report.runs)}\nReport: {report.page}")


def _write_planner(path: Path) -> None:
    from ringexp.report.planner import planner_page

    try:
        path.write_text(planner_page(), encoding="utf-8")
    except OSError as error:
        print(f"ringexp.report: error: {path} cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    print(f"Planner: {path}")


if __name__ == "__main__":
    main()
