"""The table at the end of a sweep: its runs side by side, on the console and as summary.csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ringexp.report.console import EMULATED, number
from ringexp.tracking.files import RESULTS, read_results, write_atomically

COLUMNS = (
    "latency_ms_median",
    "speedup_over_even",
    "capacity_efficiency",
    "slowdown",
    "efficiency",
    "tflops",
    "error_max_abs",
)


def load_sweep(sweep_dir: Path) -> list[dict[str, Any]]:
    """results.json of every run of a sweep, in job order, each with its config under `config`."""
    from omegaconf import OmegaConf

    runs = []
    folders = [path.parent for path in sweep_dir.glob(f"*/{RESULTS}")]
    for folder in sorted(folders, key=lambda path: int(path.name.split("_")[0])):
        results = read_results(folder) or {}
        config_file = folder / "config.yaml"
        config = OmegaConf.to_container(OmegaConf.load(config_file)) if config_file.exists() else None
        runs.append({"run": folder.name, "config": config, **results})
    return runs


def compare(sweep_dir: Path) -> None:
    """Print the runs of a sweep side by side and write summary.csv; failed runs with their reason."""
    import csv
    import io

    from rich.console import Console
    from rich.table import Table

    runs = load_sweep(sweep_dir)
    done = [run for run in runs if run["status"] == "complete"]
    console = Console(highlight=False, width=None if Console().is_terminal else 132)
    if done:
        table = Table(title="Sweep", title_justify="left", title_style="bold")
        for name in ("profile", "tokens", "layout", "partitioner", "tokens a rank"):
            table.add_column(name)
        for name in ("latency ms", "over even", "capacity eff.", "slowdown", "max error"):
            table.add_column(name, justify="right")
        for run in done:
            table.add_row(*_identity(run), *_figures(run))
        console.print(table)
        for name, emulated in sorted({(run["throttle"], run["throttle_emulated"]) for run in done}):
            console.print(f"throttle {name}" + (f" ({EMULATED})" if emulated else ""))
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["run", "profile", "seq_len", "layout", "partitioner", "tokens", *COLUMNS])
        for run in done:
            writer.writerow([run["run"], *_identity(run), *(run[name] for name in COLUMNS)])
        write_atomically(sweep_dir / "summary.csv", text.getvalue())
    for run in runs:
        if run["status"] != "complete":
            console.print(
                f"[red]failed[/red] {run['run']}: {run.get('reason', 'it did not finish')}", soft_wrap=True
            )
    resumed = sum("resumed_from" in run for run in done)
    earlier = f" ({resumed} taken from earlier ones)" if resumed else ""
    console.print(
        f"{len(done)} of {len(runs)} runs complete{earlier}; everything lies in {sweep_dir}", soft_wrap=True
    )


def _identity(run: dict[str, Any]) -> list[str]:
    config = run["config"]
    profile = "/".join(f"{p:g}" for p in config["hetero"]["percentages"])
    tokens = "/".join(str(count) for count in run["tokens"])
    return [profile, str(config["seq_len"]), config["layout"]["name"], config["partitioner"]["name"], tokens]


def _figures(run: dict[str, Any]) -> list[str]:
    return [
        f"{run['latency_ms_median']:.2f}",
        number(run["speedup_over_even"], "{:.2f}x"),
        number(run["capacity_efficiency"]),
        number(run["slowdown"], "{:.2f}x"),
        number(run["error_max_abs"], "{:.1e}"),
    ]
