"""The text that one run prints: its progress, plan and results, and where its files are."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from ringexp.choices import THROTTLES
from ringexp.config import Config
from ringexp.hetero.drift import drift_label
from ringexp.planning import Plan
from ringexp.printable import plain_lines, shown
from ringexp.report.terminal import text_console
from ringexp.tracking.results import Decoding, RunRecord, RunResult

EMULATED = "emulated by pacing: ranks wait, the hardware is not slower"


class Console:
    """Prints to standard output; plain text where that is not a terminal."""

    def __init__(self) -> None:
        self._out = text_console()

    def heading(self, config: Config, device: str, throttle: str) -> None:
        note = f" ({EMULATED})" if THROTTLES[throttle].emulated else ""
        profile = drift_label(config.hetero.percentages, config.hetero.drift)
        self._out.print(
            f"[bold]{shown(config.model.name)}[/bold], {config.seq_len} tokens on {config.world_size} ranks "
            f"({device}), profile {profile}, throttle {throttle}{note}"
        )

    @contextmanager
    def progress(self) -> Iterator[_Progress]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self._out, transient=True) as bars:
            yield _Progress(bars, self._out)

    def plan(self, config: Config, plan: Plan, throttle: str, note: str | None) -> None:
        """Return the text of a dry run's plan."""
        columns = _PlanColumns(plan.shares, plan.tokens, plan.kv_tokens, _spans(plan))
        self._out.print(_plan_table(config, columns))
        work = [plan.pairs(rank) for rank in range(plan.world_size)]
        parts = ", ".join(f"{100 * pairs / sum(work):.1f} %" for pairs in work)
        self._out.print(f"Attention work per rank: {parts}. Throttle: {throttle}.")
        if note:
            self._out.print(f"Note: {shown(note)}.")
        self._out.print("dry_run=true: nothing was started.")

    def results(self, config: Config, record: RunRecord, run_dir: Path) -> None:
        """Print plan and result tables of a finished run, and where its files are."""
        result = record.figures()
        self._out.print(
            _plan_table(
                config,
                _PlanColumns(result.shares, result.tokens, result.kv_tokens, result.plan),
                result.speeds,
                result.sm_counts,
            )
        )
        self._out.print(_rank_table(result))
        self._out.print(_result_table(result))
        texts = result.decode.texts if result.decode else []
        for number, text in enumerate(texts):
            which = f" of prompt {number}" if len(texts) > 1 else ""
            self._out.print(f"[bold]Continuation{which}[/bold]")
            self._out.print(plain_lines(text), markup=False)
        if result.throttle_emulated:
            self._out.print(f"Throttle {result.throttle}: {EMULATED}.")
        self._out.print(f"Everything lies in {shown(run_dir)}", soft_wrap=True)
        if record.wandb and Path(record.wandb).is_dir():
            self._out.print(f"Send to wandb: {shown(sync_command(Path(record.wandb)))}", soft_wrap=True)
        elif record.wandb:
            self._out.print(f"wandb: {shown(record.wandb)}", soft_wrap=True)


@dataclass(frozen=True)
class _PlanColumns:
    """The columns of a plan's table that every plan has, with an entry per rank. spans: positions as text."""

    shares: Sequence[float]
    tokens: Sequence[int]
    kv_tokens: Sequence[int]
    spans: Sequence[str]


def _plan_table(
    config: Config,
    columns: _PlanColumns,
    speeds: Sequence[float] = (),
    sm_counts: Sequence[int | None] = (),
) -> Table:
    title = f"Plan: partitioner {config.partitioner.name}, layout {config.layout.name}"
    table = Table(title=title, title_justify="left", title_style="bold")
    limits_sms = any(count is not None for count in sm_counts)
    kv_differs = list(columns.tokens) != list(columns.kv_tokens)
    names = ["rank", "percent", *(["SMs"] if limits_sms else []), "share", "tokens"]
    names += ["kv tokens"] if kv_differs else []
    names += ["speed TFLOP/s"] if speeds else []
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("positions")
    for rank, percentage in enumerate(config.hetero.percentages):
        row = [str(rank), f"{percentage:g}", *([str(sm_counts[rank])] if limits_sms else [])]
        row += [f"{columns.shares[rank]:.3f}", str(columns.tokens[rank])]
        row += [str(columns.kv_tokens[rank])] if kv_differs else []
        row += [f"{speeds[rank]:.3g}"] if speeds else []
        table.add_row(*row, columns.spans[rank])
    return table


def _rank_table(result: RunResult) -> Table:
    table = Table(title="Ranks: medians, ms", title_justify="left", title_style="bold")
    times_ms = {
        "linear": result.linear_ms,
        "attention": result.attention_ms,
        "busy": result.busy_ms,
        "wait": result.wait_ms,
        "idle": result.idle_ms,
        "transfers": result.comm_ms,
    }
    for name in ("rank", *times_ms, "peak memory MiB"):
        table.add_column(name, justify="right")
    for rank, peak_bytes in enumerate(result.peak_memory_bytes):
        row = (f"{times[rank]:.2f}" for times in times_ms.values())
        table.add_row(str(rank), *row, f"{peak_bytes / 2**20:.0f}")
    return table


def _result_table(result: RunResult) -> Table:
    table = Table(title="Result", title_justify="left", title_style="bold", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in _result_rows(result):
        table.add_row(*map(shown, row))
    return table


class _Progress:
    """Shows the events of rank 0: a bar on a terminal, elsewhere one line per stage."""

    def __init__(self, bars: Progress, out: RichConsole) -> None:
        self._bars, self._out = bars, out
        self._task: TaskID | None = None

    def event(self, event: Mapping[str, object]) -> None:
        """Show one event: a stage that begins, a step of it that is done, or a warning."""
        if "stage" in event:
            if self._task is not None:
                self._bars.remove_task(self._task)
            stage, total = shown(event["stage"]), event["total"]
            self._task = self._bars.add_task(stage, total=total if isinstance(total, int | float) else None)
            if not self._out.is_terminal:
                self._out.print(f"  {stage}")
        elif "advance" in event and self._task is not None:
            self._bars.advance(self._task)
        elif "warn" in event:
            self._out.print(f"  warning: {shown(event['warn'])}")


def sync_command(folder: Path, pattern: str = "") -> str:
    """Return the command that sends an offline wandb record, or all below a folder, to the server."""
    return f"wandb sync {shlex.quote(str(folder))}" + (f"/{pattern}" if pattern else "")


def _spans(plan: Plan) -> list[str]:
    return [str(shard) for shard in plan.q_shards]


def number(value: float | None, pattern: str = "{:.3f}") -> str:
    """Format a figure for a table; a dash if it was not measured."""
    return "-" if value is None or value != value else pattern.format(value)


def _result_rows(result: RunResult) -> list[tuple[str, str, str]]:
    iterations = str(result.settled_iterations)
    if result.settled_iterations < len(result.latency_ms_iterations):
        iterations += " with the last plan"
    spread = f"IQR {result.latency_ms_spread:.2f}; {result.latency_ms_back_to_back:.2f} ms back to back"
    kernel = f"kernel {result.kernel}, transport {result.transport}"
    rows = [
        (
            "latency" if result.time_to_first_token_ms is None else "time to first token",
            f"{result.latency_ms_median:.2f} ms",
            f"median of {iterations}, {spread}",
        ),
        ("predicted", number(result.latency_ms_predicted, "{:.2f} ms"), "by the plan, from calibration"),
        (
            "speedup over even",
            number(result.speedup_over_even, "{:.2f}x"),
            "same ranks and layout, even split",
        ),
        (
            "capacity efficiency",
            number(result.capacity_efficiency),
            "1.0: nothing of the ranks' speed is lost",
        ),
        ("slowdown", number(result.slowdown, "{:.2f}x"), "against all ranks at full speed"),
        ("efficiency", f"{result.efficiency:.3f}", "part of the ranks' time spent computing"),
        ("throughput", f"{result.tflops:.3g} TFLOP/s", kernel),
    ]
    if result.exact is not None:
        verdict = "exact" if result.exact else "WRONG"
        error = number(result.error_max_abs, "{:.2g}")
        rows.append(("max error", error, f"against one process in float32: {verdict}"))
    if result.error_checkpoint is not None:
        against = "of the logits' spread, against Hugging Face's own model in float32"
        rows.append(("checkpoint error", f"{result.error_checkpoint:.2g}", against))
    if adaptation := result.adaptation:
        cost = f"took {adaptation.replan_ms:.1f} ms; all prompts with that: {adaptation.total_ms:.0f} ms"
        rows.append(("new plans", str(adaptation.replans), cost))
    if result.decode:
        rows += _decode_rows(result.decode)
    if fit := result.speed_model:
        rows.append(("formula R^2", f"{fit.r_squared:.4f}", f"fitted to {fit.num_rows} rows"))
    return rows


def _decode_rows(decode: Decoding) -> list[tuple[str, str, str]]:
    kept = "/".join(map(str, decode.kept))
    total = decode.tokens * decode.sequences
    checked = "not checked"
    if decode.agreeing is not None:
        checked = f"{decode.agreeing} as one process would choose"
    rows = [
        ("decode", f"{decode.tokens_per_s:.1f} tokens/s", f"{decode.ms_per_token:.2f} ms per token"),
        ("decode against one", number(decode.speedup, "{:.2f}x"), "one full-speed device alone"),
        ("new tokens", str(total), f"{checked}; kept by rank: {kept}"),
    ]
    if decode.longest_context is not None:
        alone = f"tokens fit in memory; {decode.longest_context_single} on one of the ranks"
        rows.append(("longest context", str(decode.longest_context), alone))
    return rows
