"""`python -m ringexp.results FOLDER ... [KEY=VALUE ...]`: list, filter and compare runs in the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ringexp.config import did_you_mean
from ringexp.errors import UserError
from ringexp.report.frame import COMPLETE, IDENTITY, Runs, load_runs

DESCRIPTION = """\
List the runs under some folders, those that KEY=VALUE leaves, one row a run; or compare them.

    python -m ringexp.results outputs
    python -m ringexp.results outputs/sweeps partitioner=even,lut seq_len=4096 --sort capacity_efficiency
    python -m ringexp.results outputs/sweeps layout=zigzag --compare partitioner
    python -m ringexp.results outputs --columns run,kernel,tflops,environment.commit

A KEY is a column of runs.csv: a choice (partitioner, layout, profile, kernel, seq_len ...), status, or a
figure of results.json; docs/metrics.md lists them. --compare KEY shows a figure, in a column for each value
of KEY."""

SHOWN = ("run", "status", "latency_ms_median", "speedup_over_even", "capacity_efficiency", "error_max_abs")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m ringexp.results",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", nargs="+", metavar="FOLDER | KEY=VALUE", help="folders are searched for runs at any depth"
    )
    parser.add_argument("--columns", help=f"comma-separated (default: {','.join(SHOWN)})")
    parser.add_argument("--sort", metavar="KEY", help="ascending; -KEY descending")
    parser.add_argument("--compare", metavar="KEY", help="a column for each of its values")
    parser.add_argument("--figure", default="latency_ms_median", help="that --compare shows (%(default)s)")
    return parser.parse_intermixed_args(arguments)


def select(runs: Runs, conditions: list[str]) -> Runs:
    """The runs that meet all of `KEY=VALUE[,VALUE]`. Raises UserError for a key that no run has."""
    for condition in conditions:
        key, _, wanted = condition.partition("=")
        values = {_plain(value) for value in wanted.split(",")}
        runs = runs[runs[column(runs, key)].map(lambda value, values=values: _plain(value) in values)]
    return runs


def column(runs: Runs, key: str) -> str:
    """`key`, if the runs have it. Raises UserError otherwise."""
    if key not in runs.columns:
        known = ", ".join((*IDENTITY, "status"))
        raise UserError(f"no run has {key}{did_you_mean(key, list(runs.columns))} (there are {known}, ...)")
    return key


def compare(runs: Runs, key: str, figure: str) -> Runs:
    """A row for each way runs differ otherwise, a column for each value of `key`; the latest run counts."""
    key, figure = column(runs, key), column(runs, figure)
    done = runs[runs.status == COMPLETE]
    others = [name for name in IDENTITY if name != key and done[name].nunique() > 1]
    return done.pivot_table(figure, others or ["model"], key, aggfunc="last").reset_index()


def show(table: Runs) -> None:
    """Print a table; figures to four digits."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    drawn = Table()
    for name in table.columns:
        drawn.add_column(escape(str(name)), justify="right" if table[name].dtype.kind in "fi" else "left")
    for _, row in table.iterrows():
        drawn.add_row(*(escape(_plain(value, 4)) for value in row))
    console.print(drawn)


def _plain(value: object, digits: int = 12) -> str:
    """A value as it is shown and compared: numbers without what they do not need, nothing for what lacks."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "" if value is None else str(value)
    if number != number:
        return ""
    return f"{number:.0f}" if number == round(number) and abs(number) < 1e9 else f"{number:.{digits}g}"


def main() -> None:
    """Exit code 0 with a table, 2 for input there can be none of."""
    arguments = parse()
    conditions = [each for each in arguments.what if "=" in each and not Path(each).exists()]
    folders = [Path(each) for each in arguments.what if each not in conditions]
    try:
        everything = load_runs(folders or [Path("outputs")])
        runs = select(everything, conditions)
        if arguments.sort:
            key = column(runs, arguments.sort.removeprefix("-"))
            runs = runs.sort_values(key, ascending=not arguments.sort.startswith("-"), kind="stable")
        if arguments.compare:
            table = compare(runs, arguments.compare, arguments.figure)
        else:
            names = arguments.columns.split(",") if arguments.columns else SHOWN
            table = runs[[column(runs, name) for name in names]]
    except UserError as error:
        print(f"ringexp.results: error: {error}", file=sys.stderr)
        sys.exit(2)
    show(table)
    done = int((runs.status == COMPLETE).sum())
    print(f"{len(runs)} of {len(everything)} runs, {done} of them complete")


if __name__ == "__main__":
    main()
