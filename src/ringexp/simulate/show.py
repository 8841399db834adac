"""Simulated figures as tables, as JSON, and as a picture of the hops."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich.table import Table

from ringexp.atomic import write_atomically
from ringexp.errors import UserError
from ringexp.printable import plain, shown
from ringexp.report.terminal import text_console
from ringexp.ring.timing import IterationTiming
from ringexp.simulate.recorded import Recorded
from ringexp.simulate.rings import Outcome, Ring, Split
from ringexp.tracking import metrics

MOST_DRAWN = 64
"""Ranks of a picture."""
PICTURES = ("png", "pdf", "svg")


def outcomes_table(outcomes: Sequence[Outcome], ring: Ring) -> None:
    """Print a row per split, then the tokens that each kind of rank gets."""
    table = Table(title=f"Simulated: {_kinds(ring)}", title_justify="left")
    for name in ("tokens", "partitioner", "layout"):
        table.add_column(name)
    columns = ("latency ms", "over one device", "capacity eff.", "computing", "in the ring", "bound by")
    for name in columns:
        table.add_column(name, justify="right")
    for one in outcomes:
        by = "transfers" if one.transfer_ms > one.compute_ms else "compute"
        table.add_row(
            str(one.split.seq_len),
            one.split.partitioner,
            one.split.layout,
            f"{one.latency_ms:.4g}",
            f"{one.speedup_over_single:.3g}x",
            f"{one.capacity_efficiency:.3f}",
            f"{one.efficiency:.0%}",
            f"{one.members} of {len(one.tokens)}",
            by,
        )
    _print(table)
    shares = Table(title="Tokens per rank", title_justify="left")
    for name in ("tokens", "partitioner", "layout", *dict.fromkeys(ring.names)):
        shares.add_column(name, justify="right" if name in ring.names else "left")
    for one in outcomes:
        shares.add_row(
            str(one.split.seq_len), one.split.partitioner, one.split.layout, *_token_ranges(one, ring)
        )
    _print(shares)


def _kinds(ring: Ring) -> str:
    return ", ".join(f"{len(list(same))} x {name}" for name, same in groupby(ring.names))


def _token_ranges(one: Outcome, ring: Ring) -> list[str]:
    """Return, for each kind of rank, fewest to most tokens, and how many have none."""
    texts = []
    for name in dict.fromkeys(ring.names):
        counts = [count for count, other in zip(one.tokens, ring.names, strict=True) if other == name]
        some = [count for count in counts if count]
        text = f"{min(some)}-{max(some)}" if some and min(some) < max(some) else str(max(counts))
        dropped = len(counts) - len(some)
        texts.append(f"{text}, {dropped} left out" if some and dropped else text if some else "left out")
    return texts


def replay_table(runs: Sequence[Recorded]) -> None:
    """Print simulated against measured latency, one row per run, and the errors."""
    table = Table(title="Simulated against measured", title_justify="left")
    for name in ("run", "measured ms", "simulated ms", "error", "at the run's own speeds"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for run in runs:
        table.add_row(
            shown(run.folder.name),
            f"{run.measured_ms:.4g}",
            f"{run.simulated_ms:.4g}",
            f"{run.error:+.1%}",
            f"{run.error_at_own_speeds:+.1%}",
        )
    _print(table)
    by_calibration, by_busy = _errors(runs)
    print(f"{len(runs)} runs, costs from calibration: {_said(by_calibration)}")
    print(f"at the speeds that ranks had in the runs, so by waits alone: {_said(by_busy)}")


def _errors(runs: Sequence[Recorded]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the errors with calibrated costs, and with the ranks' own speeds in the runs."""
    by_calibration = metrics.absolute_errors([run.error for run in runs])
    return by_calibration, metrics.absolute_errors([run.error_at_own_speeds for run in runs])


def _said(errors: tuple[float, float]) -> str:
    return f"median error {errors[0]:.1%}, 95th percentile {errors[1]:.1%}"


def outcomes_json(outcomes: Sequence[Outcome], ring: Ring) -> str:
    """Return the simulated figures as JSON."""
    outcome_fields = [asdict(one) | asdict(one.split) | {"members": one.members} for one in outcomes]
    for one in outcome_fields:
        del one["split"]
    return json.dumps({"ranks": list(ring.names), "simulated": outcome_fields}, indent=2)


def replay_json(runs: Sequence[Recorded]) -> str:
    """Return simulated and measured latencies, and their errors, as JSON."""
    (middle, high), (busy_middle, busy_high) = _errors(runs)
    rows: list[dict[str, object]] = [
        {
            "run": plain(run.folder),
            "measured_ms": run.measured_ms,
            "simulated_ms": run.simulated_ms,
            "error": run.error,
            "error_at_own_speeds": run.error_at_own_speeds,
        }
        for run in runs
    ]
    summary = {"error_median": middle, "error_p95": high}
    at_own = {"error_at_own_speeds_median": busy_middle, "error_at_own_speeds_p95": busy_high}
    return json.dumps(summary | at_own | {"runs": rows}, indent=2)


def draw_timelines(
    path: Path, timed: Sequence[tuple[Split, list[IterationTiming]]], names: Sequence[str]
) -> None:
    """Draw a picture with one panel per split. Raises UserError for more ranks than a picture can show."""
    from ringexp.report.figures.style import drawing, tokens
    from ringexp.report.figures.timeline import timelines

    if len(names) > MOST_DRAWN:
        raise UserError(
            f"--timeline draws up to {MOST_DRAWN} ranks, and there are {len(names)}; leave it out"
        )
    panels = [
        (
            split.partitioner,
            f"{split.partitioner}, {split.layout}: simulated, {tokens(split.seq_len)} tokens, "
            f"{ranks[0].latency_ms:.4g} ms per layer",
            ranks,
        )
        for split, ranks in timed
    ]
    kind = path.suffix.removeprefix(".").lower() or "png"
    if kind not in PICTURES:
        raise UserError(f"--timeline {path}: .{kind} is unknown; choose one of .{', .'.join(PICTURES)}")
    image = io.BytesIO()
    with drawing():
        figure = timelines(panels, names)
        kinds, kind = figure.canvas.get_supported_filetypes(), path.suffix.removeprefix(".") or "png"
        if kind not in kinds:
            raise UserError(
                f"--timeline {path}: .{kind} is no kind of picture; choose one of {', '.join(kinds)}"
            )
        figure.savefig(image, format=kind)
    try:
        path.parent.stat()  # a folder that is not there is more likely a slip than a wish
        write_atomically(path, image.getvalue())
    except OSError as error:
        raise UserError(f"--timeline {path} cannot be written: {error.strerror}") from error


def _print(table: Table) -> None:
    text_console().print(table)
