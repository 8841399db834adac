#!/usr/bin/env python
"""Partitioners and layouts side by side on throttled ranks: correctness, then times, then one table.

    python scripts/bench_partitioners.py --out docs/benchmarks/2x-h200
    python scripts/bench_partitioners.py --out /tmp/b --model attention_tiny --lengths 1024,2048   # on a CPU

Writes table.md (with hardware, versions and the command), runs.csv and speedup.png to --out. Runs that share
a profile share one set of rank processes; each keeps its own folder under --root.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from ringexp import config as settings
from ringexp.app import execute
from ringexp.cli import CONF_DIR
from ringexp.report.console import Console, number
from ringexp.tracking.files import read_results, write_atomically

BASELINE = ("contiguous", "even")
FIGURES = ("latency_ms_median", "latency_ms_spread", "latency_ms_back_to_back")
FIGURES += ("speedup_over_contiguous_even", "capacity_efficiency", "capacity_efficiency_back_to_back")
FIGURES += ("slowdown", "efficiency", "tflops", "error_max_abs", "error_single_max_abs", "exact")


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


def configs(arguments: argparse.Namespace) -> list[settings.Config]:
    """Every combination, in the order of the table."""
    settings.register()
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
            found.append(settings.from_hydra(compose("config", overrides)))
    return found


def with_ratios(runs: list[dict[str, Any]]) -> None:
    """Add each run's speedup over contiguous even at its profile and length, and its efficiency in a row."""
    base = {
        (run["profile"], run["seq_len"]): run["latency_ms_median"]
        for run in runs
        if (run["layout"], run["partitioner"]) == BASELINE
    }
    for run in runs:
        latency, in_a_row = run["latency_ms_median"], run["latency_ms_back_to_back"]
        reference, efficiency = base.get((run["profile"], run["seq_len"])), run["capacity_efficiency"]
        run["speedup_over_contiguous_even"] = reference / latency if reference else None
        run["capacity_efficiency_back_to_back"] = efficiency * latency / in_a_row if efficiency else None


def markdown(runs: list[dict[str, Any]]) -> str:
    """The table, under what it was measured with."""
    environment = runs[0]["environment"]
    machine = environment["machine"]
    hardware = ", ".join(machine["gpus"]) if machine["device"] == "cuda" else f"{machine['cpu']}, CPU only"
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    throttles = ", ".join(
        sorted({run["throttle"] + (" (emulated)" if run["throttle_emulated"] else "") for run in runs})
    )
    lines = [
        "# Partitioners and layouts on throttled ranks",
        "",
        f"- date: {environment['time'][:10]}; commit {environment['commit']}",
        f"- hardware: {hardware}; driver {machine.get('driver') or '-'}; throttle: {throttles}",
        f"- versions: Python {environment['python']}, {versions}",
        f"- command: `{shlex.join(['python', *sys.argv])}`",
        f"- kernel {runs[0]['kernel']}, transport {runs[0]['transport']}; medians of "
        f"{len(runs[0]['latency_ms_iterations'])} iterations, each from a barrier, and as many in a row",
        "",
        "| profile | tokens | layout | partitioner | tokens a rank | latency ms | back to back ms "
        "| over contiguous even | capacity efficiency | back to back | slowdown "
        "| max error (one process) | exact |",
        "| --- | ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for run in runs:
        cells = [
            run["profile"],
            run["seq_len"],
            run["layout"],
            run["partitioner"],
            " / ".join(map(str, run["tokens"])),
            f"{run['latency_ms_median']:.2f}",
            f"{run['latency_ms_back_to_back']:.2f}",
            number(run["speedup_over_contiguous_even"], "{:.2f}x"),
            number(run["capacity_efficiency"]),
            number(run["capacity_efficiency_back_to_back"]),
            number(run["slowdown"], "{:.2f}x"),
            f"{number(run['error_max_abs'], '{:.1e}')} ({number(run['error_single_max_abs'], '{:.1e}')})",
            {True: "yes", False: "NO", None: "-"}[run["exact"]],
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def figure(runs: list[dict[str, Any]], path: Path) -> None:
    """Bars of the speedup over contiguous even: a panel a profile and length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layouts, partitioners = (
        list(dict.fromkeys(run[key] for run in runs)) for key in ("layout", "partitioner")
    )
    panels = list(dict.fromkeys((run["profile"], run["seq_len"]) for run in runs))
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    plot, axes = pyplot.subplots(rows, columns, figsize=(6 * columns, 3.2 * rows), squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        for offset, layout in enumerate(layouts):
            heights = [
                run["speedup_over_contiguous_even"]
                for partitioner in partitioners
                for run in runs
                if (run["profile"], run["seq_len"]) == panel
                and (run["layout"], run["partitioner"]) == (layout, partitioner)
            ]
            places = [index + 0.4 * offset - 0.2 for index in range(len(partitioners))]
            bars = axis.bar(places, heights, width=0.38, label=layout, color=("#8fa8c8", "#1f4e8c")[offset])
            axis.bar_label(bars, fmt="%.2f", fontsize=8)
        axis.set_xticks(range(len(partitioners)), partitioners)
        axis.set_title(f"ranks at {panel[0]} %, {panel[1]} tokens", fontsize=10)
        axis.set_ylabel("speedup over contiguous even")
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].legend(frameon=False)
    plot.tight_layout()
    plot.savefig(path, dpi=120)


def main() -> None:
    arguments = parse()
    wanted = configs(arguments)
    root = Path(arguments.root)
    folders = [root / "runs" / f"{index:03d}_{config.label}" for index, config in enumerate(wanted)]
    failed: list[BaseException] = []
    try:
        outcomes = execute(list(zip(wanted, folders, strict=True)), Console(), resume=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    except KeyboardInterrupt as error:  # also a time limit: what is complete goes to the table
        failed = [error]
    found = [read_results(folder) or {} for folder in folders]
    runs = [
        {
            "profile": "/".join(f"{p:g}" for p in config.hetero.percentages),
            "seq_len": config.seq_len,
            "layout": config.layout.name,
            "partitioner": config.partitioner.name,
            **results,
        }
        for config, results in zip(wanted, found, strict=True)
        if results.get("status") == "complete"
    ]
    if not runs:
        raise failed[0]
    with_ratios(runs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    identity = ("profile", "seq_len", "layout", "partitioner", "tokens", "shares", "speeds")
    writer.writerow([*identity, *FIGURES])
    for run in runs:
        writer.writerow([run[name] for name in (*identity, *FIGURES)])
    write_atomically(arguments.out / "runs.csv", text.getvalue())
    write_atomically(arguments.out / "table.md", markdown(runs))
    if not failed and all(run["speedup_over_contiguous_even"] for run in runs):
        figure(runs, arguments.out / "speedup.png")
    print(markdown(runs))
    if failed:
        raise failed[0]


if __name__ == "__main__":
    main()
