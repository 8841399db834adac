"""Every figure of the report: its name, title, caption and the function that draws it.

A function takes the complete runs that may be compared with each other (`frame.contexts`) and gives a
matplotlib Figure, or None where the runs do not have the axes it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringexp.report.plotting import MATPLOTLIB  # isort: split

from ringexp.report.figures import adaptation, comparisons, curves, timeline
from ringexp.report.figures.calibration import calibration_curves
from ringexp.report.frame import Runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "MATPLOTLIB", "FigureKind", "calibration_curves"]


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure.

    Attributes:
        name: the name of its PNG.
        title: its heading on the page.
        caption: what it shows, and what it is relative to.
        draw: draws it, or returns None where the runs do not have its axes.
        of_drift: whether it shows runs whose speeds change. The other figures leave those out.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Runs], Figure | None]
    of_drift: bool = False


_IDEAL = "Light blue: what the ranks' summed measured speed would allow."

FIGURES: Sequence[FigureKind] = (
    FigureKind(
        "speedup_bars",
        "Speedup over contiguous even",
        "Against the even split of the contiguous layout on the same throttled ranks.",
        comparisons.speedup_bars,
    ),
    FigureKind(
        "extreme_case",
        "The extreme case",
        f"Every way of splitting with the slowest rank and the longest prompt. {_IDEAL}",
        comparisons.extreme_case,
    ),
    FigureKind(
        "capacity_efficiency",
        "Capacity efficiency, isolated iterations",
        "Capacity-ideal time / latency, each iteration from a barrier. 1.0: nothing is lost.",
        curves.efficiency_isolated,
    ),
    FigureKind(
        "capacity_efficiency_back_to_back",
        "Capacity efficiency, back to back",
        "The same with iterations in a row, nothing between them.",
        curves.efficiency_back_to_back,
    ),
    FigureKind(
        "speedup_heatmaps",
        "Speedup over contiguous even, everywhere",
        "Against the even split of the contiguous layout with the same ranks and prompt; below 1: slower.",
        comparisons.speedup_heatmaps,
    ),
    FigureKind(
        "latency_by_percentage",
        "Latency by percentage",
        f"Medians; logarithmic. {_IDEAL}",
        curves.latency_by_percentage,
    ),
    FigureKind(
        "latency_by_length", "Latency by length", f"Medians; logarithmic. {_IDEAL}", curves.latency_by_length
    ),
    FigureKind(
        "slowdown_by_percentage",
        "Slowdown by percentage",
        "Latency against the same ring with all ranks at full speed, split evenly.",
        curves.slowdown_by_percentage,
    ),
    FigureKind(
        "slowdown_by_length",
        "Slowdown by length",
        "Latency against the same ring with all ranks at full speed, split evenly.",
        curves.slowdown_by_length,
    ),
    FigureKind(
        "token_distribution",
        "Who gets how many tokens",
        "Parts of the longest prompt, rank 0 at the bottom; orange: where measured speeds would end them.",
        comparisons.token_distribution,
    ),
    FigureKind(
        "predicted_and_measured",
        "Predicted and measured latency",
        "What the plan's simulation expected from calibration against what was measured; grey: within 5 %.",
        comparisons.predicted_and_measured,
    ),
    FigureKind(
        "kv_only",
        "Splitting keys/values only",
        "Speedup over the layout's even split. Queries decide a rank's work, and split=kv leaves them even.",
        curves.kv_only,
    ),
    FigureKind(
        "ring_timelines",
        "What the ranks did",
        "One iteration of median latency each; time runs from left to right on a scale of its own.",
        timeline.ring_timelines,
    ),
    FigureKind(
        "adaptation",
        "Speeds that change in mid-run",
        f"Above each prompt's latency (the highest 3 % may be cut off), below its split. {_IDEAL}",
        adaptation.adaptation,
        of_drift=True,
    ),
)
"""In the order of the page. Calibration curves come after them: their rows are not those of runs."""
