"""From a config and a source of speeds to the plan; the same function in the launcher and on every rank."""

from __future__ import annotations

from collections.abc import Sequence

from ringexp.config import DEFAULT_TILE, Config
from ringexp.configure.prompts import starts_of
from ringexp.planning import (
    BY_COST,
    WEIGHTS,
    AdaptivePlanner,
    HopCost,
    Mask,
    Plan,
    RankCost,
    SpeedSource,
    apportion,
    balanced_plan,
    make_plan,
)


def plan_for(
    config: Config,
    source: SpeedSource,
    device_type: str,
    mask: Mask,
    room: Sequence[int | None] | None = None,
    hop: HopCost | None = None,
) -> Plan:
    """Partitioner -> whole tiles -> layout.

    room: the most tokens that each rank's memory holds, None: any number; `balanced` keeps to it. hop: what
    passing shards on costs; with it `balanced` leaves out ranks whose shards would come too late to pay.
    Raises UserError if the prompt has too few tiles, or does not fit.
    """
    tile = config.tile or DEFAULT_TILE[device_type]
    return _in_chunks(config, _whole_plan(config, source, tile, mask, room, hop), tile)


def adaptive_planner(
    config: Config,
    source: SpeedSource,
    device_type: str,
    mask: Mask,
    units: int,
    room: Sequence[int | None] | None = None,
    hop: HopCost | None = None,
) -> AdaptivePlanner:
    """What `partitioner=adaptive` plans with from prompt to prompt, beginning with `plan_for`'s plan.

    units: how often what costs are about is repeated in a prompt.
    """
    tile = config.tile or DEFAULT_TILE[device_type]

    def make(costs: Sequence[RankCost]) -> Plan:
        return _in_chunks(config, _balanced(config, costs, tile, mask, hop), tile)

    def move(tokens: Sequence[int]) -> Plan:
        plan = make_plan(config.seq_len, tokens, config.layout.name, mask=mask, starts=starts_of(config))
        return _in_chunks(config, plan, tile)

    costs = _with_room(source.costs(mask), room)
    return AdaptivePlanner(config.partitioner.adaptive, costs, make, move, tile, units, hop)


def _in_chunks(config: Config, plan: Plan, tile: int) -> Plan:
    chunks = config.model.num_chunks(config.seq_len)
    if chunks == 1:
        return plan
    return make_plan(
        config.seq_len,
        plan.tokens,
        config.layout.name,
        mask=plan.mask,
        tile=tile,
        chunks=chunks,
        starts=starts_of(config),
    )


def _with_room(costs: Sequence[RankCost], room: Sequence[int | None] | None) -> list[RankCost]:
    """Costs that know what each rank's memory holds."""
    return [cost.capped(most) for cost, most in zip(costs, room or [None] * len(costs), strict=True)]


def _balanced(config: Config, costs: Sequence[RankCost], tile: int, mask: Mask, hop: HopCost | None) -> Plan:
    seq_len, layout, ahead = config.seq_len, config.layout.name, config.transport.prefetch_hops
    return balanced_plan(costs, seq_len, tile, layout, mask, hop, ahead, starts_of(config))


def _whole_plan(
    config: Config,
    source: SpeedSource,
    tile: int,
    mask: Mask,
    room: Sequence[int | None] | None,
    hop: HopCost | None,
) -> Plan:
    """The plan of the whole prompt at once."""
    if config.partitioner.name in BY_COST:
        return _balanced(config, _with_room(source.costs(mask), room), tile, mask, hop)
    weights = list(WEIGHTS[config.partitioner.name](source))
    tokens = apportion(weights, config.seq_len, tile)
    return make_plan(
        config.seq_len,
        tokens,
        config.layout.name,
        shard=config.split,
        mask=mask,
        tile=tile,
        starts=starts_of(config),
    )
