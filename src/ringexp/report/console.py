"""What a run prints: where it is, the plan, the results, and where everything lies."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from ringexp.choices import THROTTLES
from ringexp.config import Config
from ringexp.hetero.drift import drift_label
from ringexp.planning import Plan
from ringexp.printable import plain_lines, shown

EMULATED = "emulated by pacing: ranks wait, the hardware is not slower"


class Console:
    """Prints to standard output; plain text where that is not a terminal."""

    def __init__(self) -> None:
        import sys

        self._out = RichConsole(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 118)

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
        """The plan of a dry run."""
        self._out.print(
            self._plan_table(config, plan.shares, plan.tokens, plan.kv_tokens, None, _spans(plan))
        )
        work = [plan.pairs(rank) for rank in range(plan.world_size)]
        parts = ", ".join(f"{100 * pairs / sum(work):.1f} %" for pairs in work)
        self._out.print(f"Attention work a rank: {parts}. Throttle: {throttle}.")
        if note:
            self._out.print(f"Note: {shown(note)}.")
        self._out.print("dry_run=true: nothing was started.")

    @staticmethod
    def _plan_table(
        config: Config,
        shares: Sequence[float],
        tokens: Sequence[int],
        kv_tokens: Sequence[int],
        speeds: Sequence[float] | None,
        spans: Sequence[str],
        sm_counts: Sequence[int | None] = (),
    ) -> Table:
        title = f"Plan: partitioner {config.partitioner.name}, layout {config.layout.name}"
        table = Table(title=title, title_justify="left", title_style="bold")
        granted = any(count is not None for count in sm_counts)
        columns = ["rank", "percent", *(["SMs"] if granted else []), "share", "tokens"]
        columns += ["kv tokens"] if list(tokens) != list(kv_tokens) else []
        columns += ["speed TFLOP/s"] if speeds else []
        for name in columns:
            table.add_column(name, justify="right")
        table.add_column("positions")
        for rank, percentage in enumerate(config.hetero.percentages):
            row = [str(rank), f"{percentage:g}", *([str(sm_counts[rank])] if granted else [])]
            row += [f"{shares[rank]:.3f}", str(tokens[rank])]
            row += [str(kv_tokens[rank])] if "kv tokens" in columns else []
            row += [f"{speeds[rank]:.3g}"] if speeds else []
            table.add_row(*row, spans[rank])
        return table

    def results(self, config: Config, results: dict[str, Any], run_dir: Path) -> None:
        """Plan and result tables of a finished run, and where its files are."""
        r = results
        self._out.print(
            self._plan_table(
                config, r["shares"], r["tokens"], r["kv_tokens"], r["speeds"], r["plan"], r["sm_counts"]
            )
        )
        ranks = Table(title="Ranks: medians, ms", title_justify="left", title_style="bold")
        times_ms = ("linear", "attention", "busy", "wait", "idle", "comm")
        for name in ("rank", *times_ms[:-1], "transfers", "peak memory MiB"):
            ranks.add_column(name, justify="right")
        for rank in range(config.world_size):
            times = (f"{r[f'{name}_ms'][rank]:.2f}" for name in times_ms)
            ranks.add_row(str(rank), *times, f"{r['peak_memory_bytes'][rank] / 2**20:.0f}")
        self._out.print(ranks)
        table = Table(title="Result", title_justify="left", title_style="bold", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        table.add_column(style="dim")
        for row in _result_rows(r):
            table.add_row(*map(shown, row))
        self._out.print(table)
        texts = (r.get("decode") or {}).get("texts", [])
        for number, text in enumerate(texts):
            which = f" of prompt {number}" if len(texts) > 1 else ""
            self._out.print(f"[bold]Continuation{which}[/bold]")
            self._out.print(plain_lines(text), markup=False)
        if r["throttle_emulated"]:
            self._out.print(f"Throttle {r['throttle']}: {EMULATED}.")
        self._out.print(f"Everything lies in {shown(run_dir)}", soft_wrap=True)
        if r.get("wandb") and Path(r["wandb"]).is_dir():
            self._out.print(f"Send to wandb: {shown(sync_command(Path(r['wandb'])))}", soft_wrap=True)
        elif r.get("wandb"):
            self._out.print(f"wandb: {shown(r['wandb'])}", soft_wrap=True)


class _Progress:
    """Shows the events of rank 0; on a terminal as a bar, elsewhere one line a stage."""

    def __init__(self, bars: Progress, out: RichConsole) -> None:
        self._bars, self._out = bars, out
        self._task: Any = None

    def event(self, event: dict[str, Any]) -> None:
        if "stage" in event:
            if self._task is not None:
                self._bars.remove_task(self._task)
            stage = shown(event["stage"])
            self._task = self._bars.add_task(stage, total=event["total"])
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
    """A figure for a table; a dash where it was not measured."""
    return "-" if value is None or value != value else pattern.format(value)


def _result_rows(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    iterations, in_a_row = str(r["settled_iterations"]), r["latency_ms_back_to_back"]
    if r["settled_iterations"] < len(r["latency_ms_iterations"]):
        iterations += " with the last plan"
    rows = [
        (
            "latency" if r["time_to_first_token_ms"] is None else "time to first token",
            f"{r['latency_ms_median']:.2f} ms",
            f"median of {iterations}, IQR {r['latency_ms_spread']:.2f}; {in_a_row:.2f} ms back to back",
        ),
        ("predicted", number(r["latency_ms_predicted"], "{:.2f} ms"), "by the plan, from calibration"),
        ("speedup over even", number(r["speedup_over_even"], "{:.2f}x"), "same ranks and layout, even split"),
        ("capacity efficiency", number(r["capacity_efficiency"]), "1.0: nothing of the ranks' speed is lost"),
        ("slowdown", number(r["slowdown"], "{:.2f}x"), "against all ranks at full speed"),
        ("efficiency", f"{r['efficiency']:.3f}", "part of the ranks' time spent computing"),
        ("throughput", f"{r['tflops']:.3g} TFLOP/s", f"kernel {r['kernel']}, transport {r['transport']}"),
    ]
    if r["exact"] is not None:
        verdict = "exact" if r["exact"] else "WRONG"
        rows.append(("max error", f"{r['error_max_abs']:.2g}", f"against one process in float32: {verdict}"))
    if r.get("error_checkpoint") is not None:
        against = "of the logits' spread, against Hugging Face's own model in float32"
        rows.append(("checkpoint error", f"{r['error_checkpoint']:.2g}", against))
    if a := r.get("adaptation"):
        cost = f"took {a['replan_ms']:.1f} ms; all prompts with that: {a['total_ms']:.0f} ms"
        rows.append(("new plans", str(a["replans"]), cost))
    if r.get("decode"):
        rows += _decode_rows(r["decode"])
    if r.get("speed_model"):
        model = r["speed_model"]
        rows.append(("formula R^2", f"{model['r_squared']:.4f}", f"fitted to {model['num_rows']} rows"))
    return rows


def _decode_rows(d: dict[str, Any]) -> list[tuple[str, str, str]]:
    kept = "/".join(map(str, d["kept"]))
    total = d["tokens"] * d["sequences"]
    checked = "not checked" if d["agreeing"] is None else f"{d['agreeing']} as one process would choose"
    rows = [
        ("decode", f"{d['tokens_per_s']:.1f} tokens/s", f"{d['ms_per_token']:.2f} ms a token"),
        ("decode against one", number(d["speedup"], "{:.2f}x"), "one full-speed device alone"),
        ("new tokens", str(total), f"{checked}; kept by rank: {kept}"),
    ]
    if d["longest_context"] is not None:
        alone = f"tokens fit in memory; {d['longest_context_single']} on one of the ranks"
        rows.append(("longest context", str(d["longest_context"]), alone))
    return rows
