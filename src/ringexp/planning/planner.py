"""`ringexp.plan`: what is known of the ranks -> a plan, in one call.

plan([1.0, 0.5, 0.25], seq_len=4096)    # shares proportional to speed
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ringexp.choices import LAYOUTS
from ringexp.errors import UserError, whole_number
from ringexp.planning.apportion import apportion_within
from ringexp.planning.cost import RankCost
from ringexp.planning.inputs import checked_cost, entries, positive_numbers
from ringexp.planning.masks import Mask
from ringexp.planning.plan import Plan, make_plan
from ringexp.planning.waterfill import balance

LONGEST = 2**53
"""The longest prompt: up to here floats count tokens one by one."""

SMALLEST_SHARE = 1e-200
"""The smallest speed, as a fraction of the fastest rank's. A slower rank gets the least share anyway."""

LARGEST_TILE = 256
TILES_A_RANK = 16
"""As fine as tiles have to be for shares to be near what speeds ask for."""


def plan(
    speeds: Sequence[float] | Sequence[RankCost],
    seq_len: int,
    *,
    layout: str = "zigzag",
    causal: bool = True,
    mask: Mask | None = None,
    tile: int | None = None,
    max_tokens: Sequence[int | None] | None = None,
) -> Plan:
    """Decide who holds which of `seq_len` tokens; the result is the same on every rank that asks.

    Needs no torch.

    Args:
        speeds: one entry per rank. Positive numbers in any unit, to which the ranks' shares are proportional,
            each at least one tile; or a `RankCost` each, for the shares with which the slowest rank is done
            first, where a rank that does not pay gets none.
        seq_len: the tokens of the prompt.
        layout: zigzag or contiguous.
        causal: whether a query sees only the keys up to its own position.
        mask: the mask itself, in place of `causal`.
        tile: tokens that are given out together. None: 256, or fewer for short prompts.
        max_tokens: the most tokens that each rank's memory holds. None: any number; 0 leaves a rank out.

    Raises:
        UserError: for what cannot be planned.
    """
    seq_len = whole_number("seq_len", seq_len, least=1, most=LONGEST)
    LAYOUTS.check(layout)
    if not isinstance(causal, bool):
        raise UserError(f"causal={causal!r} must be True or False")
    if mask is None:
        mask = Mask.of(causal)
    elif not isinstance(mask, Mask):
        raise UserError(f"mask={mask!r} must be a ringexp.Mask, such as ringexp.Mask.causal()")
    known = entries("speeds", speeds)
    if not known:
        raise UserError("speeds=[] needs one entry for each rank")
    room = _room(max_tokens, seq_len, len(known))
    if tile is None:
        tile = _default_tile(seq_len, sum(most != 0 for most in room))
    tile = whole_number("tile", tile, least=1, most=LONGEST)
    costs = [each for each in known if isinstance(each, RankCost)]
    if not costs:
        tokens = _proportional(positive_numbers("speeds", known), seq_len, tile, room)
    elif len(costs) == len(known):
        capped = [checked_cost(cost).capped(most) for cost, most in zip(costs, room, strict=True)]
        tokens = balance(capped, seq_len, tile, layout, mask)
    else:
        raise UserError(f"speeds={known} mixes numbers and costs; give one or the other of every rank")
    return make_plan(seq_len, tokens, layout, mask=mask)


def _proportional(speeds: Sequence[float], seq_len: int, tile: int, room: Sequence[int | None]) -> list[int]:
    """Return token counts proportional to `speeds`, none for ranks without room."""
    members = [rank for rank, most in enumerate(room) if most != 0]
    largest = max(speeds[rank] for rank in members)
    exponent = math.frexp(largest)[1]  # a power of two, so that no share is rounded
    weights = [max(math.ldexp(speeds[rank], -exponent), SMALLEST_SHARE) for rank in members]
    counts = apportion_within(weights, seq_len, tile, [room[rank] for rank in members])
    by_rank = dict(zip(members, counts, strict=True))
    return [by_rank.get(rank, 0) for rank in range(len(speeds))]


def _default_tile(seq_len: int, world_size: int) -> int:
    """The largest power of two of which every rank could have `TILES_A_RANK`, up to `LARGEST_TILE`."""
    most = max(seq_len // (world_size * TILES_A_RANK), 1)
    return min(LARGEST_TILE, 1 << (most.bit_length() - 1))


def _room(max_tokens: Sequence[int | None] | None, seq_len: int, world_size: int) -> Sequence[int | None]:
    """Return the most tokens of each rank, None: any number."""
    room = [None] * world_size if max_tokens is None else entries("max_tokens", max_tokens)
    if len(room) != world_size:
        raise UserError(f"max_tokens={room} needs None or at least 0 for each of {world_size} ranks")
    room = [None if most is None else whole_number("max_tokens", most, least=0) for most in room]
    if sum(seq_len if most is None else most for most in room) < seq_len:
        raise UserError(f"seq_len={seq_len} is more than max_tokens={room} hold together; plan fewer tokens")
    return room
