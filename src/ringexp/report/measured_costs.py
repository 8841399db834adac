"""The costs that a run's plan was made with, out of its results.json."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ringexp.planning import EqualLinks, Link, RankCost
from ringexp.report.folder import Damaged
from ringexp.report.values import number
from ringexp.tracking.files import RESULTS

COSTS = tuple(field.name for field in fields(RankCost))


def costs_of(results: dict[str, Any]) -> list[RankCost]:
    """Return what work cost each rank; nothing where it is not known. Raises Damaged for what is no cost."""
    found = results.get("costs") or []
    if not isinstance(found, list):
        raise Damaged(f"{RESULTS} has costs that are no list")
    return [_cost(each) for each in found]


def _cost(given: Any) -> RankCost:
    values = given if isinstance(given, dict) else {}
    amounts = {name: number(values.get(name)) for name in COSTS if values.get(name) is not None}
    known = set(values) <= set(COSTS) and {"fixed_ms", "token_ms", "pair_ms"} <= set(amounts)
    if not known or any(amount is None or amount < 0 for amount in amounts.values()):
        raise Damaged(f"{RESULTS} has costs that are not numbers of at least 0 by their names")
    parts: dict[str, Any] = {name: values[name] for name in amounts}
    if not isinstance(parts.get("max_tokens"), int | None):
        raise Damaged(f"{RESULTS} has costs whose max_tokens is no number of tokens")
    return RankCost(**parts)


def links_of(results: dict[str, Any]) -> EqualLinks | None:
    """Return what a hop cost; None where it is not known. Raises Damaged for what is no cost."""
    hop = results.get("hop")
    if hop is None:
        return None
    values = hop if isinstance(hop, dict) else {}
    latency_ms, token_ms = number(values.get("latency_ms")), number(values.get("token_ms"))
    if latency_ms is None or token_ms is None or latency_ms < 0 or token_ms < 0:
        raise Damaged(f"{RESULTS} has a hop that is not two times of at least 0")
    return EqualLinks(Link(latency_ms, token_ms), direct=values.get("direct") is True)
