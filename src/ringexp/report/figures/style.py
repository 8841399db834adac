"""The looks of all figures: a colour per partitioner, a line style and marker per layout, readable sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any, Literal
from zlib import crc32

import matplotlib
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ringexp.web.palette import COLOURS, OTHER_COLOURS, SKY

Dashes = Literal["-", "--", "-.", ":"]
"""The line styles in use, in matplotlib's words."""

LINES: dict[str, Dashes] = {"contiguous": "--", "zigzag": "-", "kv": ":"}
MARKERS = {"contiguous": "s", "zigzag": "o", "kv": "^"}
IDEAL = {"color": SKY, "linewidth": 2.5, "zorder": 1.5}
"""The line of what the ranks' summed speed would allow."""

Sharing = bool | Literal["none", "all", "row", "col"]
"""Which panels share an axis, as `Figure.subplots` takes it."""

DPI = 110
LEGEND_HEIGHT = 0.7
"""Inches below the panels of any figure."""
PERCENT_AXIS = "slowest rank, % of the fastest"
LENGTH_AXIS = "prompt, tokens"


@contextmanager
def drawing() -> Iterator[None]:
    """Use matplotlib's own defaults in a block, not the user's, and draw names as they are written."""
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if "backend" not in name}
    defaults["text.parse_math"] = False
    with matplotlib.rc_context(defaults):  # pyright: ignore[reportArgumentType]
        yield


def new_figure(
    rows: int,
    columns: int,
    *,
    width: float = 4.4,
    height: float = 3.3,
    sharex: Sharing = False,
    sharey: Sharing = False,
) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure of rows x columns panels, each `width` x `height` inches."""
    figure = Figure(figsize=(width * columns, height * rows + LEGEND_HEIGHT), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # whatever backend the environment names
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)  # type: ignore[union-attr]
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9)
    return figure, [list(row) for row in axes]


def panels(count: int, *, width: float = 4.4, sharey: Sharing = False) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels, at most three side by side."""
    columns = min(count, 3)
    figure, grid = new_figure(ceil(count / columns), columns, width=width, sharey=sharey)
    axes = [axis for row in grid for axis in row]
    for axis in axes[count:]:
        axis.remove()
    if count < len(axes):  # what is above a gap needs its own labels of x
        for axis in axes[count - columns : count]:
            axis.tick_params(labelbottom=True)
    return figure, axes[:count]


def colour(partitioner: str) -> str:
    """Return a partitioner's colour; that of a plug-in follows from its name."""
    other = OTHER_COLOURS[crc32(partitioner.encode()) % len(OTHER_COLOURS)]
    return COLOURS.get(partitioner, other)


def way(layout: str, split: str) -> str:
    """Return the name of the line style and marker: the layout, or kv where only keys/values are split."""
    return "kv" if split == "kv" else layout


def style(partitioner: str, layout: str, split: str = "tokens") -> dict[str, Any]:
    """Return the look of a line, as keyword arguments of Axes.plot."""
    kind = way(layout, split)
    return {
        "color": colour(partitioner),
        "linestyle": LINES.get(kind, "-."),
        "marker": MARKERS.get(kind, "D"),
        "markersize": 4.5,
        "linewidth": 1.5,
    }


def shade(partitioner: str, rank: int, world_size: int) -> tuple[float, float, float]:
    """Return the partitioner's colour for rank 0, paler for each rank after it."""
    pale = 0.75 * rank / max(world_size - 1, 1)
    red, green, blue = (part + (1 - part) * pale for part in to_rgb(colour(partitioner)))
    return red, green, blue


def legend(
    figure: Figure, partitioners: Iterable[str], ways: Sequence[str], extra: Sequence[Artist] = ()
) -> None:
    """Put a legend below the panels: colours of partitioners, then styles of layouts."""
    handles: list[Artist] = [
        Line2D([], [], color=colour(name), linewidth=3, label=name) for name in partitioners
    ]
    words = {"kv": "keys/values only"}
    if len(ways) > 1 or "kv" in ways:
        handles += [
            Line2D(
                [],
                [],
                color="#555555",
                linestyle=LINES.get(kind, "-."),
                marker=MARKERS.get(kind, "D"),
                markersize=5,
                label=words.get(kind, kind),
            )
            for kind in ways
        ]
    handles += extra
    below(figure, handles)


def below(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend under all panels, in as few rows as its width allows. The figure grows if it is tall."""
    for rows in range(1, len(handles) + 1):
        columns = ceil(len(handles) / rows)
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=10
        )
        size = legend.get_window_extent()
        if columns == 1 or size.width / figure.dpi <= figure.get_figwidth():
            figure.set_figheight(figure.get_figheight() + max(size.height / figure.dpi - LEGEND_HEIGHT, 0))
            return
        legend.remove()


def ideal_handle(label: str) -> Line2D:
    """Return the legend entry of the ideal line."""
    return Line2D([], [], label=label, **IDEAL)


def tokens(length: float) -> str:
    """Return a short text for a count of tokens: 16k for 16384, 1000 for 1000."""
    return f"{int(length) // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{int(length)}"


def length_axis(axis: Axes, lengths: Sequence[float]) -> None:
    """Make x a logarithmic axis of prompt lengths."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(lengths), [tokens(length) for length in lengths])
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set_xlabel(LENGTH_AXIS)


def percent_axis(axis: Axes, percents: Sequence[float]) -> None:
    """Make x an axis of percentages of the slowest rank."""
    axis.set_xticks(list(percents), [f"{percent:g}" for percent in percents])
    axis.set_xlabel(PERCENT_AXIS)


def log_y(axis: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers. Call it when everything is drawn."""
    axis.set_yscale("log")
    axis.autoscale_view()
    _plain_log(axis.yaxis, *axis.get_ylim())
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)


def log_x(axis: Axes) -> None:
    """Do the same for the x axis."""
    axis.set_xscale("log")
    axis.autoscale_view()
    _plain_log(axis.xaxis, *axis.get_xlim())
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)


def _plain_log(axis: Axis, low: float, high: float) -> None:
    """Put ticks at 1, 2 and 5 of each decade, and at more places where there are few decades."""
    subs = (1, 2, 5) if high > 15 * low else (1, 1.5, 2, 3, 4, 5, 6, 8) if high > 3 * low else None
    axis.set_major_locator(
        ticker.LogLocator(subs=subs) if subs else ticker.MaxNLocator(6, steps=[1, 2, 5, 10])
    )
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def ordered(names: Iterable[str]) -> list[str]:
    """Return partitioners in the order of the study, others after them."""
    present = set(names)
    return [name for name in COLOURS if name in present] + sorted(present - set(COLOURS))


def ordered_ways(names: Iterable[str]) -> list[str]:
    """Return line styles in the order of the study, others after them."""
    present = set(names)
    return [name for name in LINES if name in present] + sorted(present - set(LINES))
