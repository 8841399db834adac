"""Calibration rows as a rank of known cost would give them."""

from ringexp.calibration.cost_model import cost_points
from ringexp.calibration.table import SpeedRow
from ringexp.planning import RankCost, make_plan


def cost_rows(cost: RankCost, lengths: list[int], causal: bool) -> list[SpeedRow]:
    rows = []
    for length, tokens in [*((length, length // 2) for length in lengths), *cost_points(lengths)]:
        plan = make_plan(length, [tokens, length - tokens], causal=causal)
        time_ms = cost.time_ms(tokens, plan.pairs(0), plan.causal_pairs(0))
        rows.append(
            SpeedRow("H200", "mps", 50.0, 1, "shape", length, tokens, 1.0, time_ms, 0.0, 5, "2026-03-01", "")
        )
    return rows
