"""From calibration rows to what work costs a rank: once, for each token, for each query-key pair."""

from __future__ import annotations

from collections.abc import Sequence

from ringexp.calibration.rows import SpeedRow
from ringexp.errors import UserError
from ringexp.planning import RankCost, make_plan

SMALL_SHARE = 8
"""Beside halves, ranks with 1 / SMALL_SHARE of the tokens are measured, and with all but that."""


def cost_points(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(length, own tokens) to measure around some lengths, besides the halves of those.

    At every length a small share beside the half: as many keys, fewer queries. And all of half and of a
    quarter of the length, which is the causal block alone: fewer keys. Three numbers of own tokens in all,
    since the diagonal grows with their square. That is four points a length for four costs: a single length
    gets a large share too, or noise of 1 % would be one of 3 % for a rank with most of the tokens.
    """
    points = set()
    for length in lengths:
        half, quarter = max(length // 2, 1), max(length // 4, 1)
        small = max(length // SMALL_SHARE, 1)
        points |= {(length, small), (half, half), (quarter, quarter)}
        if len(lengths) == 1:
            points.add((length, length - small))
    return sorted(points - {(length, length // 2) for length in lengths})


def fit_cost(rows: Sequence[SpeedRow], causal: bool) -> RankCost:
    """The cost that explains the rows best, none of its parts negative; relative errors count.

    rows: of one rank's hardware, throttle, percentage and shape, at different lengths and shares. What each
    own token costs for every shard of others is told from the rest if some have those of several ranks.
    Raises UserError if they do not tell tokens from pairs.
    """
    import numpy as np
    from scipy.optimize import nnls

    terms = []
    for row in rows:
        plan = make_plan(row.length, [row.tokens, row.length - row.tokens], causal=causal)
        hops = row.others if row.tokens < row.length else 0
        terms.append((1.0, row.tokens, plan.pairs(0), plan.causal_pairs(0), hops * row.tokens))
    found = len({term[:4] for term in terms})
    if found < 4:
        raise UserError(
            "costs need calibration rows at four lengths or shares, and the table has "
            f"{found}; calibration.mode=auto measures what is missing"
        )
    if all(row.others == 1 for row in rows):
        terms = [term[:4] for term in terms]
    times = np.array([row.time_ms for row in rows])
    scale = np.maximum(np.array(terms).max(axis=0), 1.0)  # without a mask nothing is on the diagonal
    solution, _ = nnls(np.array(terms) / scale / times[:, None], np.ones(len(rows)))
    fixed, token, pair, diagonal, *hop = (float(value) for value in solution / scale)
    return RankCost(fixed, token, pair, diagonal, hop_token_ms=sum(hop))
