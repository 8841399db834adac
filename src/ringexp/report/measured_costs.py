"""The costs that a run's plan was made with, checked before anything is computed from them."""

from __future__ import annotations

from dataclasses import fields
from math import isfinite

from ringexp.planning import EqualLinks, RankCost
from ringexp.report.folder import Damaged
from ringexp.tracking.files import RESULTS
from ringexp.tracking.results import RunResult


def costs_of(result: RunResult) -> list[RankCost]:
    """Return what work cost each rank; nothing where it is not known. Raises Damaged for what is no cost."""
    for cost in result.costs:
        amounts = (getattr(cost, item.name) for item in fields(cost))
        if any(amount is not None and not (isfinite(amount) and amount >= 0) for amount in amounts):
            raise Damaged(f"{RESULTS} has costs that are not numbers of at least 0 by their names")
    return result.costs


def links_of(result: RunResult) -> EqualLinks | None:
    """Return what a hop cost; None where it is not known. Raises Damaged for what is no cost."""
    hop = result.hop
    if hop and not (0 <= hop.latency_ms < float("inf") and 0 <= hop.token_ms < float("inf")):
        raise Damaged(f"{RESULTS} has a hop that is not two times of at least 0")
    return hop.links if hop else None
