"""One HTML page that holds everything: no network, no other file. Its frame is page.html."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from ringexp.printable import plain
from ringexp.report.frame import (
    COMPLETE,
    FAILED,
    FIGURES,
    Run,
    Runs,
    csv_text,
    each_run,
    number_in,
    ranks_of,
    where,
)
from ringexp.report.headlines import Headline
from ringexp.web import STYLE

FILTERS = ("status", "model", "profile", "seq_len", "layout", "partitioner", "split", "kernel", "throttle")
"""Columns that come first and have a choice of their values above the table."""


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn; context: which of several groups of runs it is of, or nothing."""

    name: str
    title: str
    caption: str
    context: str
    png: bytes


def page(
    title: str,
    runs: Runs,
    group_headlines: Sequence[tuple[str, Sequence[Headline]]],
    figures: Sequence[Drawn],
    notes: Sequence[str],
) -> str:
    """Return the page: headlines per context, then figures, then all runs, then their environment."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        style=STYLE.read_text(encoding="utf-8"),
        counts=escape(counts(runs)),
        csv=base64.b64encode(csv_text(runs).encode()).decode(),
        summary="\n".join(_summary(group_headlines, runs, notes)),
        figures="\n".join(map(_figure, figures)) or '<p class="dim">The runs have no axis to draw over.</p>',
        head=_head(),
        rows="\n".join(_row(run) for run in each_run(runs)),
        environment=_environment(runs),
    )


def counts(runs: Runs) -> str:
    """Count how runs ended: `4 of 5 runs complete (1 taken from earlier ones), 1 failed`."""
    done = where(runs, runs.status == COMPLETE)
    resumed = int(done.resumed_from.notna().sum())
    earlier = f" ({resumed} taken from earlier ones)" if resumed else ""
    parts = [f"{len(done)} of {len(runs)} runs complete{earlier}"]
    parts += [
        f"{count} {status}" for status, count in runs.status.value_counts().items() if status != COMPLETE
    ]
    return ", ".join(parts)


def _summary(
    group_headlines: Sequence[tuple[str, Sequence[Headline]]], runs: Runs, notes: Sequence[str]
) -> Iterable[str]:
    for context, lines in group_headlines:
        if context:
            yield f"<h3>{escape(context)}</h3>"
        yield '<div class="findings">'
        for line in lines:
            yield (
                f'<div class="finding">{escape(line.name)}<b>{escape(line.text)}</b>'
                f"<small>{escape(line.detail)}</small></div>"
            )
        yield "</div>"
    if not group_headlines:
        yield '<p class="dim">No run is complete.</p>'
    if "throttle_emulated" in runs and runs.throttle_emulated.isin([True]).any():
        yield "<p>Throttle cpu_pacing is emulated: ranks wait, the hardware is not slower.</p>"
    for note in notes:
        yield f'<p class="bad">{escape(note)}</p>'
    for _, run in where(runs, runs.status == FAILED).iterrows():
        yield f'<p class="bad">failed: {escape(run.run)}: {escape(str(run.reason))}</p>'


def _figure(drawn: Drawn) -> str:
    data = base64.b64encode(drawn.png).decode()
    title = escape(drawn.title + (f": {drawn.context}" if drawn.context else ""))
    return (
        f'<figure id="{escape(drawn.name)}"><h3>{title}</h3><figcaption>{escape(drawn.caption)}</figcaption>'
        f'<img alt="{title}" src="data:image/png;base64,{data}"></figure>'
    )


def _head() -> str:
    names = ["run", *FILTERS, "tokens per rank", *FIGURES, "exact"]
    return "".join(f"<th{' data-filter' if name in FILTERS else ''}>{escape(name)}</th>" for name in names)


def _row(run: Run) -> str:
    cells = [f'<td title="{escape(plain(run.folder))}">{escape(run.run)}</td>']
    cells += [f"<td>{escape(_plain(run[name]))}</td>" for name in FILTERS]
    cells.append(f"<td>{'/'.join(f'{count:.0f}' for count in ranks_of(run, 'tokens'))}</td>")
    cells += [_number(number_in(run, name)) for name in FIGURES]
    cells.append(f"<td>{ {True: 'yes', False: 'NO'}.get(run.exact, '') }</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _plain(value: object) -> str:
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _number(value: float | None) -> str:
    """Return a cell that sorts by the whole number and shows four digits of it."""
    if value is None:
        return '<td class="n"></td>'
    return f'<td class="n" data-v="{value!r}">{value:.4g}</td>'


def _environment(runs: Runs) -> str:
    """Return one line per fact, with every value that the runs have of it."""
    rows = []
    for name in ["hardware", *(name for name in runs if str(name).startswith("environment."))]:
        values = [str(value) for value in runs[name].dropna().unique() if value != ""]
        if name == "environment.time" and len(values) > 1:
            values = [f"{min(values)} to {max(values)}"]
        if values:
            short = str(name).removeprefix("environment.")
            rows.append(f"<tr><th>{escape(short)}</th><td>{'<br>'.join(map(escape, values))}</td></tr>")
    return "\n".join(rows)
