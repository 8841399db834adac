"""Give out whole tiles of tokens in proportion to weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ringexp.errors import UserError


def check_enough_tiles(seq_len: int, world_size: int, tile: int) -> None:
    """Raise UserError if there are fewer whole tiles than ranks."""
    if seq_len < world_size * tile:
        raise UserError(
            f"seq_len={seq_len} is smaller than one tile of {tile} tokens for each of {world_size} ranks; "
            f"use seq_len>={world_size * tile} or a smaller tile"
        )


def apportion(weights: Sequence[float], seq_len: int, tile: int) -> list[int]:
    """Divide seq_len into whole tiles in proportion to `weights`, minimising max(count / weight).

    If weights are speeds, the slowest rank is done as early as possible. Each tile goes to the rank that
    would be done with it first (the divisor method of D'Hondt), and so do the tokens that fill no tile.
    Every rank gets at least one tile. Apart from that, no rank is more than a tile below its exact share.
    Ties go to the lower rank, so the result depends on the arguments alone.

    Raises:
        UserError: if there are fewer tiles than ranks, or a weight is not positive and finite.
    """
    ranks = range(len(weights))
    if not weights or any(not (math.isfinite(w) and w > 0) for w in weights):
        raise UserError(f"every rank needs a positive speed, got {list(weights)}")
    if tile < 1:
        raise UserError(f"tile={tile} must be at least 1 token")
    check_enough_tiles(seq_len, len(weights), tile)
    total, whole = math.fsum(weights), seq_len - seq_len % tile
    tokens = [max(int(w / total * whole // tile), 1) * tile for w in weights]
    while sum(tokens) > whole:  # the minimum gave too much: take it from whoever is done last
        donor = max((r for r in ranks if tokens[r] > tile), key=lambda r: (tokens[r] / weights[r], r))
        tokens[donor] -= tile
    while (left := min(seq_len - sum(tokens), tile)) > 0:
        taker = min(ranks, key=lambda r: ((tokens[r] + left) / weights[r], r))
        tokens[taker] += left
    return tokens


def apportion_within(
    weights: Sequence[float], seq_len: int, tile: int, max_tokens: Sequence[int | None]
) -> list[int]:
    """Divide as `apportion` does, but give rank i at most `max_tokens[i]` tokens; None for no limit.

    Tokens that do not fit a rank go to the others by their weights. All limits together must be enough.
    """
    tokens = apportion(weights, seq_len, tile)
    full = {rank: most for rank, most in enumerate(max_tokens) if most is not None and tokens[rank] > most}
    if not full:
        return tokens
    others = [rank for rank in range(len(weights)) if rank not in full]
    left = seq_len - sum(full.values())
    rest = apportion_within([weights[r] for r in others], left, tile, [max_tokens[r] for r in others])
    counts = full | dict(zip(others, rest, strict=True))
    return [counts[rank] for rank in range(len(weights))]
