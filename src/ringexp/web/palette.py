"""Who has which colour: Okabe and Ito's (Color Universal Design, 2008), told apart by the colour-blind."""

from __future__ import annotations

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"

COLOURS = {
    "even": BLACK,
    "uneven": ORANGE,
    "lut": BLUE,
    "formula": PURPLE,
    "balanced": GREEN,
    "adaptive": VERMILION,
}
"""Of partitioners."""

OTHER_COLOUR = "#999999"

RANK_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, BLACK)
"""Of ranks, in rank order."""
