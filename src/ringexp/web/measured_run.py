"""A measured run as the planner's page can be set to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ringexp.planning import RankCost

PARTITIONERS = ("even", "lut", "balanced")
"""The partitioners that the page computes itself."""


@dataclass(frozen=True)
class MeasuredRun:
    """Some runs with the same ranks and the same prompt.

    Attributes:
        name: what the page calls them.
        settings: the page's settings for ranks, prompt and hops, by their names in state.js; None: not known.
        costs: what the plans expected work to cost, per rank; None: not known.
        measured: latency in ms by layout and partitioner.
    """

    name: str
    settings: Mapping[str, object]
    costs: list[RankCost] | None
    measured: dict[str, dict[str, float]]
