"""`ringexp.plan`: what is known of the ranks -> a plan, in one call.

plan([1.0, 0.5, 0.25], seq_len=4096)    # shares proportional to speed
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

from ringexp.errors import UserError
from ringexp.planning.cost import RankCost
from ringexp.planning.partitioners import apportion_within
from ringexp.planning.plan import Plan, make_plan
from ringexp.planning.waterfill import balance

LARGEST_TILE = 256
TILES_A_RANK = 16
"""As fine as tiles have to be for shares to be near what speeds ask for."""


def plan(
    speeds: Sequence[float] | Sequence[RankCost],
    seq_len: int,
    *,
    layout: str = "zigzag",
    causal: bool = True,
    tile: int | None = None,
    max_tokens: Sequence[int | None] | None = None,
) -> Plan:
    """Who holds which of `seq_len` tokens, one entry of `speeds` a rank; the same on every rank that asks.

    speeds: positive numbers in any unit, to which the ranks' shares are proportional, each at least one tile;
    or a `RankCost` each, for the shares with which the slowest rank is done first, where a rank that does
    not pay gets none. tile: tokens that are given out together; by default 256, or fewer for short prompts.
    max_tokens: the most that each rank's memory holds, None: any number; 0 leaves a rank out.

    Raises UserError, in one line, for what cannot be planned. Needs no torch.
    """
    if not hasattr(seq_len, "__index__") or seq_len < 1:
        raise UserError(f"seq_len={seq_len} must be a whole number of at least 1")
    seq_len = index(seq_len)
    known = list(speeds)
    if not known:
        raise UserError("speeds=[] needs one entry for each rank")
    tile = _default_tile(seq_len, len(known)) if tile is None else tile
    if tile < 1:
        raise UserError(f"tile={tile} must be at least 1 token")
    room = _room(max_tokens, seq_len, len(known))
    costs = [each for each in known if isinstance(each, RankCost)]
    if not costs:
        tokens = apportion_within(_numbers(known), seq_len, tile, room)
    elif len(costs) == len(known):
        capped = [cost.capped(most) for cost, most in zip(costs, room, strict=True)]
        tokens = balance(capped, seq_len, tile, layout, causal)
    else:
        raise UserError(f"speeds={known} mixes numbers and costs; give one or the other of every rank")
    return make_plan(seq_len, tokens, layout, causal=causal)


def _default_tile(seq_len: int, world_size: int) -> int:
    """The largest power of two of which every rank could have `TILES_A_RANK`, up to `LARGEST_TILE`."""
    most = max(seq_len // (world_size * TILES_A_RANK), 1)
    return min(LARGEST_TILE, 1 << (most.bit_length() - 1))


def _room(max_tokens: Sequence[int | None] | None, seq_len: int, world_size: int) -> Sequence[int | None]:
    room = [None] * world_size if max_tokens is None else list(max_tokens)
    if len(room) != world_size or any(most is not None and most < 0 for most in room):
        raise UserError(f"max_tokens={room} needs None or at least 0 for each of {world_size} ranks")
    if sum(seq_len if most is None else most for most in room) < seq_len:
        raise UserError(f"seq_len={seq_len} is more than max_tokens={room} hold together; plan fewer tokens")
    return room


def _numbers(speeds: Sequence[object]) -> list[float]:
    try:
        return [float(speed) for speed in speeds]  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(f"speeds={speeds} must be positive numbers, or a RankCost each") from error
