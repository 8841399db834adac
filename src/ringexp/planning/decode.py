"""Decoding with a cache spread over the ranks: who keeps the next token."""

from __future__ import annotations

from collections.abc import Sequence

from ringexp.errors import UserError


def next_owner(tokens: Sequence[int], speeds: Sequence[float], max_tokens: Sequence[int | None]) -> int:
    """Return the rank that keeps the keys/values of the next token: the one with the most free capacity.

    Decoding reads a rank's whole cache for every token. So this is the rank that would be done first with one
    token more: the least (tokens + 1) / speed. Ties go to the lower rank.

    Args:
        tokens: tokens in the cache per rank. Ranks with none are not in the ring.
        speeds: one per rank.
        max_tokens: the most tokens that each rank's memory holds; None for no limit.

    Raises:
        UserError: if every rank is full.
    """
    able = [
        rank
        for rank, (count, most) in enumerate(zip(tokens, max_tokens, strict=True))
        if count and (most is None or count < most)
    ]
    if not able:
        raise UserError(f"no rank has room for another token: {list(tokens)} of {list(max_tokens)} are taken")
    return min(able, key=lambda rank: ((tokens[rank] + 1) / speeds[rank], rank))


def owners(
    tokens: Sequence[int], speeds: Sequence[float], max_tokens: Sequence[int | None], count: int
) -> list[int]:
    """Return the owners of the next `count` tokens, one after the other."""
    counts, ranks = list(tokens), []
    for _ in range(count):
        ranks.append(next_owner(counts, speeds, max_tokens))
        counts[ranks[-1]] += 1
    return ranks
