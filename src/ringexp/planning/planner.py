"""`ringexp.plan`: make a plan of the ranks' speeds or costs in one call.

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
TILES_PER_RANK = 16
"""With this many tiles per rank, shares come near the speeds' proportions."""


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
    given = entries("speeds", speeds)
    if not given:
        raise UserError("speeds=[] needs one entry for each rank")
    limits = _limits(max_tokens, seq_len, len(given))
    if tile is None:
        tile = _default_tile(seq_len, sum(most != 0 for most in limits))
    tile = whole_number("tile", tile, least=1, most=LONGEST)
    costs = [entry for entry in given if isinstance(entry, RankCost)]
    if not costs:
        tokens = _proportional(positive_numbers("speeds", given), seq_len, tile, limits)
    elif len(costs) == len(given):
        capped = [checked_cost(cost).capped(most) for cost, most in zip(costs, limits, strict=True)]
        tokens = balance(capped, seq_len, tile, layout, mask)
    else:
        raise UserError(f"speeds={given} mixes numbers and costs; give one or the other of every rank")
    return make_plan(seq_len, tokens, layout, mask=mask)


def _proportional(
    speeds: Sequence[float], seq_len: int, tile: int, limits: Sequence[int | None]
) -> list[int]:
    """Return token counts proportional to `speeds`, none for ranks whose memory holds none."""
    members = [rank for rank, most in enumerate(limits) if most != 0]
    largest = max(speeds[rank] for rank in members)
    exponent = math.frexp(largest)[1]  # a power of two, so that no share is rounded
    weights = [max(math.ldexp(speeds[rank], -exponent), SMALLEST_SHARE) for rank in members]
    counts = apportion_within(weights, seq_len, tile, [limits[rank] for rank in members])
    by_rank = dict(zip(members, counts, strict=True))
    return [by_rank.get(rank, 0) for rank in range(len(speeds))]


def _default_tile(seq_len: int, world_size: int) -> int:
    """Return the largest tile, a power of two up to LARGEST_TILE, that gives ranks TILES_PER_RANK tiles."""
    most = max(seq_len // (world_size * TILES_PER_RANK), 1)
    return min(LARGEST_TILE, 1 << (most.bit_length() - 1))


def _limits(max_tokens: Sequence[int | None] | None, seq_len: int, world_size: int) -> Sequence[int | None]:
    """Return the most tokens of each rank, None: any number."""
    limits = [None] * world_size if max_tokens is None else entries("max_tokens", max_tokens)
    if len(limits) != world_size:
        raise UserError(f"max_tokens={limits} needs None or at least 0 for each of {world_size} ranks")
    limits = [None if most is None else whole_number("max_tokens", most, least=0) for most in limits]
    if sum(seq_len if most is None else most for most in limits) < seq_len:
        raise UserError(
            f"seq_len={seq_len} is more than max_tokens={limits} hold together; plan fewer tokens"
        )
    return limits
