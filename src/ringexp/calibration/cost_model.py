"""Fit a rank's costs per iteration, per token and per query-key pair to calibration rows."""

from __future__ import annotations

from collections.abc import Sequence

from ringexp.calibration.rows import SpeedRow
from ringexp.errors import UserError
from ringexp.planning import Mask, RankCost, make_plan

SMALL_SHARE = 8
"""Besides halves, shares of 1 / SMALL_SHARE of the tokens are measured, and the large rest of the tokens."""


def cost_points(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return the further points to measure around some lengths, besides half the tokens of each length.

    Per length these are a small share (as many keys as the half, fewer queries), and all tokens of prompts of
    half and of a quarter of the length (the causal block alone, fewer keys). That makes three numbers of own
    tokens, since the diagonal's cost grows with their square, and four points for four costs. A single length
    gets a large share too; without it, 1 % of noise becomes 3 % for a rank with most of the tokens.

    Returns:
        Pairs (tokens of the prompt, the rank's own tokens), sorted.
    """
    points = set()
    for length in lengths:
        half, quarter = max(length // 2, 1), max(length // 4, 1)
        small = max(length // SMALL_SHARE, 1)
        points |= {(length, small), (half, half), (quarter, quarter)}
        if len(lengths) == 1:
            points.add((length, length - small))
    return sorted(points - {(length, length // 2) for length in lengths})


def fit_cost(rows: Sequence[SpeedRow], mask: Mask) -> RankCost:
    """Fit non-negative costs to rows by least squares of relative errors.

    Args:
        rows: rows of one hardware, throttle, percentage and shape, at different lengths and shares. The cost
            per own token and foreign shard is separated only if some rows have several other ranks.
        mask: which keys a query may see.

    Raises:
        UserError: if the rows are at fewer than four lengths or shares.
    """
    import numpy as np
    from scipy.optimize import nnls

    terms = []
    for row in rows:
        plan = make_plan(row.length, [row.tokens, row.length - row.tokens], mask=mask)
        hops = row.others if row.tokens < row.length else 0
        terms.append((1.0, row.tokens, plan.pairs(0), plan.causal_pairs(0), hops * row.tokens))
    distinct = len({term[:4] for term in terms})
    if distinct < 4:
        raise UserError(
            "costs need calibration rows at four lengths or shares, and the table has "
            f"{distinct}; calibration.mode=auto measures what is missing"
        )
    if all(row.others == 1 for row in rows):
        terms = [term[:4] for term in terms]
    times = np.array([row.time_ms for row in rows])
    scale = np.maximum(np.array(terms).max(axis=0), 1.0)  # a full mask has no diagonal
    solution, _ = nnls(np.array(terms) / scale / times[:, None], np.ones(len(rows)))
    fixed, token, pair, diagonal, *hop = (float(value) for value in solution / scale)
    return RankCost(fixed, token, pair, diagonal, hop_token_ms=sum(hop))
