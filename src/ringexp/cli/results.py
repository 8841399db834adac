"""`ringexp results FOLDER ... [KEY=VALUE ...]`: list, filter and compare runs in the terminal."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import median

from ringexp.choices import did_you_mean
from ringexp.cli.terminal import keep_printing
from ringexp.errors import UserError
from ringexp.interrupts import end_interrupted, is_interrupt
from ringexp.printable import plain, shown
from ringexp.report.frame import COMPLETE, CONTEXT, IDENTITY, Run, Runs, each_run, load_runs, number_in, where

DESCRIPTION = """\
List the runs under some folders that match all KEY=VALUE, one row per run; or compare them.

    ringexp results outputs
    ringexp results outputs/sweeps partitioner=even,lut seq_len=4096 --sort capacity_efficiency
    ringexp results outputs/sweeps --sort -latency_ms_median
    ringexp results outputs/sweeps layout=zigzag --compare partitioner
    ringexp results outputs --columns run,kernel,tflops,environment.commit

A KEY is a column of runs.csv: a choice (partitioner, layout, profile, kernel, seq_len ...), status, or a
figure of results.json; docs/metrics.md lists them. --compare KEY shows a figure in a column for each value of
KEY: the median over equal runs, how many they are, and their least and largest."""

MOST_CELLS = 60

SHOWN = ("run", "status", "latency_ms_median", "speedup_over_even", "capacity_efficiency", "error_max_abs")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command's options; None: those of this process."""
    parser = argparse.ArgumentParser(
        "ringexp results",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", nargs="+", metavar="FOLDER | KEY=VALUE", help="folders are searched for runs at any depth"
    )
    parser.add_argument("--columns", help=f"comma-separated (default: {','.join(SHOWN)})")
    parser.add_argument("--sort", metavar="KEY", help="ascending; -KEY descending")
    parser.add_argument("--compare", metavar="KEY", help="show one column per value of KEY")
    parser.add_argument(
        "--figure", default="latency_ms_median", help="the figure that --compare shows (%(default)s)"
    )
    return parser.parse_intermixed_args(_joined(sys.argv[1:] if arguments is None else arguments))


def _joined(arguments: list[str]) -> list[str]:
    """Return the arguments with `--sort -KEY` joined; argparse would take them for two options."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--sort":
            joined[-1] = f"--sort={argument}"
        else:
            joined.append(argument)
    return joined


def select(runs: Runs, conditions: list[str]) -> Runs:
    """Return the runs that match all of `KEY=VALUE[,VALUE]`. Raises UserError for a key that no run has."""
    for condition in conditions:
        key, _, wanted = condition.partition("=")
        values = {_plain(value) for value in wanted.split(",")}
        runs = where(runs, [_plain(value) in values for value in runs[column(runs, key)]])
    return runs


def column(runs: Runs, key: str) -> str:
    """Return `key` if the runs have it. Raises UserError otherwise."""
    if key not in runs.columns:
        some = ", ".join((*IDENTITY, "status"))
        raise UserError(f"no run has {key}{did_you_mean(key, list(runs.columns))} (there are {some}, ...)")
    return key


@dataclass(frozen=True)
class Comparison:
    """A table of medians with their spread, and the names of the runs behind each of its cells."""

    table: Runs
    runs_of: dict[str, list[str]]


def compare(runs: Runs, key: str, figure: str) -> Comparison:
    """Compare complete runs in a table with one column per value of `key`.

    There is one row per combination of everything else in which runs differ. A cell has the median over equal
    runs, their number, and their least and largest value. Copies of one earlier run count once.
    """
    import pandas as pd

    key, figure = column(runs, key), column(runs, figure)
    done = runs[runs.status == COMPLETE]
    done = done.assign(**{figure: pd.to_numeric(done[figure], errors="coerce")})
    if done[figure].isna().all():
        raise UserError(f"no complete run has {figure} as a number; choose another --figure")
    origin = done.resumed_from.where(done.resumed_from.notna(), done.folder)
    done = done[done[figure].notna() & ~origin.duplicated()]
    others = [name for name in dict.fromkeys((*IDENTITY, *CONTEXT)) if name != key]
    others = [name for name in others if done[name].nunique(dropna=False) > 1] or ["model"]
    others = [name for name in others if name != key] or [IDENTITY[1]]
    done = done.sort_values([*others, key], key=lambda values: values.map(_order), kind="stable")
    cells: dict[tuple[str, ...], list[Run]] = {}
    for run in each_run(done):
        cells.setdefault(tuple(_plain(run[name]) for name in (*others, key)), []).append(run)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for (*way, value), same in cells.items():
        row = rows.setdefault(tuple(way), dict(zip(others, way, strict=True)))
        row[f"{value} "] = _cell(
            [number_in(run, figure) or 0.0 for run in same]
        )  # the space keeps it apart from names of columns
    values = [f"{_plain(value)} " for value in sorted(done[key].unique(), key=_order)]
    table = pd.DataFrame(list(rows.values()), columns=pd.Index([*others, *values])).fillna("")
    return Comparison(table, {", ".join(cell): [run.run for run in same] for cell, same in cells.items()})


def _cell(values: list[float]) -> str:
    """Return the median of equal runs and the distance between them, as text."""
    middle = _plain(median(values), 4)
    if len(values) == 1:
        return middle
    return f"{middle} ({len(values)} runs, {_plain(min(values), 4)} to {_plain(max(values), 4)})"


def _order(value: object) -> tuple[int, float, str]:
    """Return a key that sorts numbers before texts, and missing values after both."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return (2, 0.0, "") if value is None else (1, 0.0, str(value))
    return (2, 0.0, "") if number != number else (0, number, "")


def in_order(runs: Runs, key: str) -> Runs:
    """Sort runs by a figure or choice, downwards for -KEY; runs that lack it come last."""
    name, down = column(runs, key.removeprefix("-")), key.startswith("-")
    places = [_order(value) for value in runs[name]]
    present = [at for at, place in enumerate(places) if place[0] != 2]
    lacking = [at for at, place in enumerate(places) if place[0] == 2]
    present.sort(key=lambda at: places[at], reverse=down)
    return runs.iloc[[*present, *lacking]]


def show(table: Runs) -> None:
    """Print a table, with figures to four digits."""
    from rich.table import Table

    from ringexp.report.terminal import text_console

    console = text_console()
    drawn = Table()
    for name in table.columns:
        drawn.add_column(shown(name), justify="right" if table[name].dtype.kind in "fi" else "left")
    for _, row in table.iterrows():
        drawn.add_row(*(shown(_plain(value, 4)) for value in row))
    console.print(drawn)


def _plain(value: object, digits: int = 12) -> str:
    """Return a value as it is shown and compared: numbers in short form, "" for a missing value."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "" if value is None else str(value)
    if not isfinite(number):
        return "" if number != number else str(value)
    return f"{number:.0f}" if number == round(number) and abs(number) < 1e9 else f"{number:.{digits}g}"


def show_comparison(comparison: Comparison) -> None:
    """Print a comparison, then the runs behind each of its cells."""
    show(comparison.table)
    print("Cells are medians over equal runs (least to largest). These runs are behind them:")
    for number, (cell, names) in enumerate(comparison.runs_of.items()):
        if number == MOST_CELLS:
            print(f"  ... and {len(comparison.runs_of) - MOST_CELLS} more cells; KEY=VALUE selects fewer")
            break
        print(plain(f"  {cell}: {', '.join(names)}"))


def main() -> None:
    """Print a table and end with exit code 0; 2: bad input, 130: Ctrl-C."""
    arguments = parse()
    keep_printing()
    conditions = [word for word in arguments.what if "=" in word and not Path(word).exists()]
    folders = [Path(word) for word in arguments.what if word not in conditions]
    try:
        everything = load_runs(folders or [Path("outputs")])
        runs = select(everything, conditions)
        if arguments.sort:
            runs = in_order(runs, arguments.sort)
        if arguments.compare:
            show_comparison(compare(runs, arguments.compare, arguments.figure))
        else:
            names = arguments.columns.split(",") if arguments.columns else SHOWN
            show(runs.loc[:, list(dict.fromkeys(column(runs, name) for name in names))])
    except UserError as error:
        print(f"ringexp results: error: {plain(error)}", file=sys.stderr)
        sys.exit(2)
    except BaseException as error:
        if not is_interrupt(error):
            raise
        end_interrupted("ringexp results: interrupted")
    done = int((runs.status == COMPLETE).sum())
    print(f"{len(runs)} of {len(everything)} runs, {done} of them complete")
