"""From a config and a source of speeds to the plan; the same function in the launcher and on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ringexp.config import DEFAULT_TILE, Config, num_chunks
from ringexp.models.prompt import starts_of
from ringexp.planning import (
    WEIGHTS,
    HopCost,
    Plan,
    SpeedSource,
    apportion,
    balanced_plan,
    make_plan,
)


def plan_for(
    config: Config,
    source: SpeedSource,
    device_type: str,
    causal: bool,
    room: Sequence[int | None] | None = None,
    hop: HopCost | None = None,
) -> Plan:
    """Partitioner -> whole tiles -> layout.

    room: the most tokens that each rank's memory holds, None: any number; `balanced` keeps to it. hop: what
    passing shards on costs; with it `balanced` leaves out ranks whose shards would come too late to pay.
    Raises UserError if the prompt has too few tiles, or does not fit.
    """
    tile = config.tile or DEFAULT_TILE[device_type]
    plan = _whole_plan(config, source, tile, causal, room, hop)
    chunks = num_chunks(config)
    if chunks == 1:
        return plan
    return make_plan(
        config.seq_len,
        plan.tokens,
        config.layout.name,
        causal=causal,
        tile=tile,
        chunks=chunks,
        starts=starts_of(config),
    )


def _whole_plan(
    config: Config,
    source: SpeedSource,
    tile: int,
    causal: bool,
    room: Sequence[int | None] | None,
    hop: HopCost | None,
) -> Plan:
    """The plan of the whole prompt at once."""
    if config.partitioner.name == "balanced":
        costs = list(source.costs(causal))
        if room:
            costs = [replace(cost, max_tokens=most) for cost, most in zip(costs, room, strict=True)]
        return balanced_plan(
            costs,
            config.seq_len,
            tile,
            config.layout.name,
            causal,
            hop,
            config.transport.prefetch_hops,
            starts_of(config),
        )
    weights = list(WEIGHTS[config.partitioner.name](source))
    tokens = apportion(weights, config.seq_len, tile)
    return make_plan(
        config.seq_len,
        tokens,
        config.layout.name,
        shard=config.shard,
        causal=causal,
        tile=tile,
        starts=starts_of(config),
    )
