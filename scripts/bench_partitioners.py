#!/usr/bin/env python
"""Partitioners and layouts side by side on throttled ranks: correctness, then times, then one table.

    python scripts/bench_partitioners.py --out docs/benchmarks/2x-h200
    python scripts/bench_partitioners.py --out /tmp/b --model attention_tiny --lengths 1024,2048   # on a CPU

Writes table.md (with hardware, versions and the command), runs.csv and speedup.png to --out. Runs that share
a profile share one set of rank processes; each keeps its own folder under --root.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir

from ringexp.app import execute
from ringexp.cli.run import CONF_DIR
from ringexp.config import Config
from ringexp.configure.compose import from_hydra
from ringexp.configure.register import register
from ringexp.report.console import Console, number
from ringexp.report.figures.comparisons import speedup_bars, speedup_heatmaps
from ringexp.report.frame import Runs, complete, csv_text, load_runs, ranks_of
from ringexp.tracking.files import write_atomically


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for table.md, runs.csv, speedup.png")
    parser.add_argument("--root", default="outputs/bench", help="folder for the runs themselves")
    parser.add_argument("--model", default="attention_mha_4096")
    parser.add_argument("--profiles", default="100_50,100_10", help="percentages of the ranks")
    parser.add_argument("--lengths", default="16384,65536")
    parser.add_argument("--layouts", default="contiguous,zigzag")
    parser.add_argument("--partitioners", default="even,uneven,lut,formula")
    parser.add_argument("overrides", nargs="*", help="further settings, such as repeats=20")
    return parser.parse_args()


def configs(arguments: argparse.Namespace) -> list[Config]:
    """Every combination, in the order of the table."""
    register()
    found = []
    axes = [
        getattr(arguments, name).split(",") for name in ("profiles", "lengths", "layouts", "partitioners")
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for profile, length, layout, partitioner in product(*axes):
            overrides = [
                f"model={arguments.model}",
                f"hetero.percentages=[{profile.replace('_', ',')}]",
                f"seq_len={length}",
                f"layout={layout}",
                f"partitioner={partitioner}",
                f"output_root={arguments.root}",
                *arguments.overrides,
            ]
            found.append(from_hydra(compose("config", overrides)))
    return found


def markdown(runs: Runs) -> str:
    """The table, under what it was measured with."""
    first = runs.iloc[0]
    prefix = "environment.versions."
    versions = {name.removeprefix(prefix): first[name] for name in runs if name.startswith(prefix)}
    emulated = " (emulated)" if runs.throttle_emulated.any() else ""
    lines = [
        "# Partitioners and layouts on throttled ranks",
        "",
        f"- date: {first['environment.time'][:10]}; commit {first['environment.commit']}",
        f"- hardware: {first.hardware}; driver {first.get('environment.machine.driver') or '-'}; "
        f"throttle: {', '.join(sorted(set(runs.throttle)))}{emulated}",
        f"- versions: Python {first['environment.python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        f"- command: `{shlex.join(['python', *sys.argv])}`",
        f"- kernel {first.kernel}, transport {first.transport}; medians of iterations, each from a barrier, "
        "and of as many in a row",
        "",
        "| profile | tokens | layout | partitioner | tokens a rank | latency ms | back to back ms "
        "| over contiguous even | capacity efficiency | back to back | slowdown "
        "| max error (one process) | exact |",
        "| --- | ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for _, run in runs.iterrows():
        cells = [
            run.profile,
            int(run.seq_len),
            run.layout,
            run.partitioner,
            " / ".join(f"{count:.0f}" for count in ranks_of(run, "tokens")),
            number(run.latency_ms_median, "{:.2f}"),
            number(run.latency_ms_back_to_back, "{:.2f}"),
            number(run.speedup_over_contiguous_even, "{:.2f}x"),
            number(run.capacity_efficiency),
            number(run.capacity_efficiency_back_to_back),
            number(run.slowdown, "{:.2f}x"),
            f"{number(run.error_max_abs, '{:.1e}')} ({number(run.error_single_max_abs, '{:.1e}')})",
            {True: "yes", False: "NO"}.get(run.exact, "-"),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = parse()
    wanted = configs(arguments)
    root = Path(arguments.root)
    folders = [root / "runs" / f"{index:03d}_{config.label}" for index, config in enumerate(wanted)]
    failed: list[BaseException] = []
    try:
        outcomes = execute(list(zip(wanted, folders, strict=True)), Console(), sweep=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    except KeyboardInterrupt as error:  # also a time limit: what is complete goes to the table
        failed = [error]
    begun = [folder for folder in folders if folder.exists()]
    runs = complete(load_runs(begun)) if begun else []
    if not len(runs):
        raise failed[0]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out / "runs.csv", csv_text(runs))
    write_atomically(arguments.out / "table.md", markdown(runs))
    figure = speedup_bars(runs) or speedup_heatmaps(runs)
    if figure:
        figure.savefig(arguments.out / "speedup.png")
    print(markdown(runs))
    if failed:
        raise failed[0]


if __name__ == "__main__":
    main()
