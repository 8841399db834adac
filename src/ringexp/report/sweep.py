"""What the end of a sweep says: its runs side by side, what became of the rest, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.errors import UserError
from ringexp.report.console import EMULATED, number
from ringexp.report.frame import FAILED, INTERRUPTED, Runs, complete, contexts, load_runs, ranks_of
from ringexp.report.page import counts

if TYPE_CHECKING:
    from rich.console import Console

MOST_ROWS = 60
"""A longer sweep shows its headlines instead of a table; the report has all."""


def summarize(sweep_dir: Path, report: bool) -> None:
    """Print how the runs of a sweep ended, and write its report if that is wanted."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, width=None if Console().is_terminal else 132)
    try:
        runs = load_runs([sweep_dir])
    except UserError as error:  # nothing was composed
        console.print(str(error), soft_wrap=True)
        return
    done = complete(runs)
    if 0 < len(done) <= MOST_ROWS:
        _table(console, done)
    elif len(done):
        _headlines(console, done)
    for name, emulated in sorted(
        {(run.throttle, run.get("throttle_emulated") is True) for _, run in done.iterrows()}
    ):
        console.print(f"throttle {name}" + (f" ({EMULATED})" if emulated else ""))
    for _, run in runs[runs.status.isin((FAILED, INTERRUPTED))].iterrows():
        console.print(f"[red]{run.status}[/red] {run.run}: {escape(str(run.reason))}", soft_wrap=True)
    console.print(f"{counts(runs)}; everything lies in {sweep_dir}", soft_wrap=True)
    if report:
        from ringexp.report.build import write_report

        try:
            console.print(f"Report: {write_report([sweep_dir], sweep_dir / 'report').page}", soft_wrap=True)
        except UserError as error:
            console.print(f"no report: {error}", soft_wrap=True)
    else:
        console.print(f"No report was made; python -m ringexp.report {sweep_dir} does", soft_wrap=True)


def _table(console: Console, done: Runs) -> None:
    from rich.table import Table

    table = Table(title="Sweep", title_justify="left", title_style="bold")
    for name in ("profile", "tokens", "layout", "partitioner", "tokens a rank"):
        table.add_column(name)
    for name in ("latency ms", "over even", "capacity eff.", "slowdown", "max error"):
        table.add_column(name, justify="right")
    for _, run in done.iterrows():
        split = " (kv only)" if run["shard"] == "kv" else ""
        table.add_row(
            run.profile,
            f"{run.seq_len:.0f}",
            run.layout,
            run.partitioner + split,
            "/".join(f"{count:.0f}" for count in ranks_of(run, "tokens")),
            number(run.latency_ms_median, "{:.2f}"),
            number(run.speedup_over_even, "{:.2f}x"),
            number(run.capacity_efficiency),
            number(run.slowdown, "{:.2f}x"),
            number(run.error_max_abs, "{:.1e}"),
        )
    console.print(table)


def _headlines(console: Console, done: Runs) -> None:
    from ringexp.report.headlines import headlines

    for context, group in contexts(done):
        console.print(f"[bold]{context}[/bold]" if context else "[bold]Sweep[/bold]")
        for line in headlines(group):
            console.print(f"  {line.name}: [bold]{line.text}[/bold] ({line.detail})", soft_wrap=True)
