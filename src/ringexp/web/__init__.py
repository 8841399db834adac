"""The planner as one page that needs no network: who gets which tokens, what every rank does, what is lost.

The page computes what `ringexp.planning` does, in planning.js; state.js turns what the reader sets into its
costs, views.js and chart.js draw, page.js has the controls. It is written beside every report, with the
report's runs to choose from, and by `ringexp report --planner FILE` without any.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template

from ringexp.web.measured_run import PARTITIONERS, MeasuredRun
from ringexp.web.palette import BLACK, BLUE, COLOURS, GREEN, RANK_COLOURS, VERMILION
from ringexp.web.shapes import offered_shapes, page_shape

FOLDER = Path(__file__).parent
STYLE = FOLDER / "page.css"
"""The style sheet of this page and of the report's."""
SCRIPTS = ("planning.js", "state.js", "views.js", "chart.js", "page.js")
ON_DARK = {BLACK: "#B8C0C8"}
"""In place of colours that a dark page swallows."""


def planner_page(runs: Sequence[MeasuredRun] = (), report: str | None = None) -> str:
    """Return the page as HTML.

    Args:
        runs: measured runs to choose from.
        report: the file beside the page that it links back to; None: no link.
    """
    shapes = [page_shape(name, shape) for name, shape in offered_shapes().items()]
    data = {"shapes": shapes, "runs": [asdict(run) for run in runs]}
    scripts = (f"<script>\n{_text(FOLDER / name)}</script>" for name in SCRIPTS)
    return Template(_text(FOLDER / "planner.html")).substitute(
        style=_text(STYLE),
        colours=_colours(),
        back=f'<a href="{report}">The report</a>' if report else "",
        data=_in_script(data),
        scripts="\n".join(scripts),
    )


def _in_script(data: object) -> str:
    """Return `data` as JSON that is safe inside HTML and JavaScript, whatever its texts contain."""
    text = json.dumps(data, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _colours() -> str:
    """Return CSS variables: the colours of partitioners, of ranks, and of text on a rank's colour."""
    named = {name: COLOURS[name] for name in PARTITIONERS}
    named |= {f"rank{rank}": colour for rank, colour in enumerate(RANK_COLOURS)}
    white = (BLACK, BLUE, GREEN, VERMILION)
    inks = {f"ink{rank}": "#fff" if colour in white else "#000" for rank, colour in enumerate(RANK_COLOURS)}
    light = {**named, **inks, "linear": "#9aa4af"}
    dark = {name: ON_DARK[colour] for name, colour in named.items() if colour in ON_DARK}
    dark |= {f"ink{rank}": "#000" for rank, colour in enumerate(RANK_COLOURS) if colour in ON_DARK}
    dark["linear"] = "#6b7682"
    return f"{_declared(light)}\n@media (prefers-color-scheme: dark) {{ {_declared(dark)} }}"


def _declared(variables: dict[str, str]) -> str:
    return f":root {{ {' '.join(f'--{name}: {value};' for name, value in variables.items())} }}"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
