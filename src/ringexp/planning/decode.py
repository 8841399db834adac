"""Decoding with a cache spread over the ranks: who keeps the next token."""

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
