"""The text at the end of a sweep: its complete runs side by side, the failed ones, and the report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.errors import RunFailed, UserError
from ringexp.printable import plain, shown
from ringexp.report.console import EMULATED, number, sync_command
from ringexp.report.frame import (
    FAILED,
    INTERRUPTED,
    Runs,
    complete,
    contexts,
    each_run,
    load_runs,
    ranks_of,
    where,
)
from ringexp.report.page import counts
from ringexp.report.terminal import text_console

if TYPE_CHECKING:
    from rich.console import Console

    from ringexp.config import Config

MOST_ROWS = 60
"""A longer sweep shows its headlines instead of a table; the report has all."""


def summarize(sweep_dir: Path, report: bool, config: Config | None = None) -> None:
    """Print how the runs of a sweep ended, and write its report if that is wanted.

    Args:
        sweep_dir: the folder of all runs.
        report: whether to write the report.
        config: of one of the runs, which says how the report is logged to wandb; None: it is not.
    """
    console = text_console()
    try:
        runs = load_runs([sweep_dir])
    except UserError as error:  # nothing was composed
        console.print(plain(error), soft_wrap=True, markup=False)
        return
    done = complete(runs)
    if 0 < len(done) <= MOST_ROWS:
        _table(console, done)
    elif len(done):
        _headlines(console, done)
    for name, emulated in sorted(
        {(str(run.throttle), run.get("throttle_emulated") is True) for run in each_run(done)}
    ):
        console.print(f"throttle {shown(name)}" + (f" ({EMULATED})" if emulated else ""))
    for _, run in where(runs, runs.status.isin((FAILED, INTERRUPTED))).iterrows():
        console.print(f"[red]{run.status}[/red] {shown(run.run)}: {shown(run.reason)}", soft_wrap=True)
    console.print(f"{counts(runs)}; everything lies in {shown(sweep_dir)}", soft_wrap=True)
    if report:
        from ringexp.report.build import write_report

        try:
            tracker, speeds_file = (config.tracker, config.speeds_file) if config else (None, None)
            written = write_report([sweep_dir], sweep_dir / "report", tracker, speeds_file)
            console.print(f"Report: {shown(written.page)}", soft_wrap=True)
        except (UserError, RunFailed) as error:
            console.print(f"no report: {shown(error)}", soft_wrap=True)
    else:
        remedy = f"ringexp report {shlex.quote(str(sweep_dir))}"
        console.print(f"No report was made; {shown(remedy)} does", soft_wrap=True)
    if any(sweep_dir.glob("*/wandb/offline-run-*")):
        console.print(
            f"Send all to wandb: {shown(sync_command(sweep_dir, '*/wandb/offline-run-*'))}", soft_wrap=True
        )


def _table(console: Console, done: Runs) -> None:
    from rich.table import Table

    table = Table(title="Sweep", title_justify="left", title_style="bold")
    for name in ("profile", "tokens", "layout", "partitioner", "tokens per rank"):
        table.add_column(name)
    for name in ("latency ms", "over even", "capacity eff.", "slowdown", "max error"):
        table.add_column(name, justify="right")
    for run in each_run(done):
        split = " (kv only)" if run["split"] == "kv" else ""
        table.add_row(
            shown(run.profile),
            number(run.seq_len, "{:.0f}"),
            shown(run.layout),
            shown(run.partitioner + split),
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
        console.print(f"[bold]{shown(context or 'Sweep')}[/bold]")
        for line in headlines(group):
            text = f"  {shown(line.name)}: [bold]{shown(line.text)}[/bold] ({shown(line.detail)})"
            console.print(text, soft_wrap=True)
