"""Calibration rows as a rank of known cost would give them."""

from ringexp.calibration.cost_model import cost_points
from ringexp.calibration.rows import SpeedRow
from ringexp.planning import Mask, RankCost, make_plan


def cost_rows(cost: RankCost, lengths: list[int], mask: Mask, others: int = 1) -> list[SpeedRow]:
    """others: also of halves where so many ranks have the rest."""
    halves = [(length, length // 2) for length in lengths]
    points = [(*point, 1) for point in (*halves, *cost_points(lengths))]
    points += [(*half, others) for half in halves if others > 1]
    rows = []
    for length, tokens, shared_by in points:
        plan = make_plan(length, [tokens, length - tokens], mask=mask)
        hops = shared_by if tokens < length else 0
        time_ms = cost.with_hops(hops).time_ms(tokens, plan.pairs(0), plan.causal_pairs(0))
        what = ("H200", "mps", 50.0, 1, "shape", length, tokens, 1.0, time_ms, 0.0, 5, "2026-03-01", "")
        rows.append(SpeedRow(*what, others=shared_by))
    return rows
