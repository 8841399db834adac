"""Colours that colour-blind readers can tell apart: Okabe and Ito, Color Universal Design, 2008."""

from __future__ import annotations

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#999999"

COLOURS = {
    "even": BLACK,
    "uneven": ORANGE,
    "lut": BLUE,
    "formula": PURPLE,
    "balanced": GREEN,
    "adaptive": VERMILION,
}
"""The colours of partitioners, in the order of the study."""

OTHER_COLOURS = (GREY, "#8C6D31", "#7B4173")
"""For partitioners from plug-ins."""

RANK_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, BLACK)
"""The colours of ranks, in rank order."""
