"""Decoding with a cache spread over the ranks: who keeps the next token, and how long a context can be."""

from __future__ import annotations

from collections.abc import Sequence

from ringexp.errors import UserError


def next_owner(held: Sequence[int], speeds: Sequence[float], room: Sequence[int | None]) -> int:
    """The rank that keeps the keys/values of the next token: the one with the most free capacity.

    Decoding reads a rank's whole cache for every token, so that is the rank which would be done first with
    one token more: the least (held + 1) / speed. Ties go to the lower rank. Ranks that hold nothing are not
    in the ring; `room` is how many tokens a rank's memory holds in all, None: any number.

    Raises UserError if every rank is full.
    """
    able = [
        rank
        for rank, (count, most) in enumerate(zip(held, room, strict=True))
        if count and (most is None or count < most)
    ]
    if not able:
        raise UserError(f"no rank has room for another token: {list(held)} of {list(room)} are taken")
    return min(able, key=lambda rank: ((held[rank] + 1) / speeds[rank], rank))


def owners(held: Sequence[int], speeds: Sequence[float], room: Sequence[int | None], count: int) -> list[int]:
    """`next_owner` for `count` tokens in a row."""
    taken, ranks = list(held), []
    for _ in range(count):
        ranks.append(next_owner(taken, speeds, room))
        taken[ranks[-1]] += 1
    return ranks


def longest_context(
    memory_bytes: Sequence[float], shares: Sequence[float], resting_bytes: float, token_bytes: float
) -> int:
    """How many tokens fit: the most S with resting_bytes + share * S * token_bytes <= memory on every rank.

    memory_bytes: of each rank. shares: the part of the tokens each holds, (1.0,) for one device alone.
    resting_bytes: what a rank needs however short the prompt is, above all its weights. token_bytes: what
    each token it holds adds, its keys/values in all layers and its activations.
    """
    fits = [
        (memory - resting_bytes) / (share * token_bytes)
        for memory, share in zip(memory_bytes, shares, strict=True)
        if share
    ]
    return max(0, int(min(fits)))
