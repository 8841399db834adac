"""From a config and a source of speeds to the plan; the same function in the launcher and on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ringexp.config import Config, num_chunks
from ringexp.errors import UserError
from ringexp.models.prompt import starts_of
from ringexp.planning import (
    WEIGHTS,
    HopCost,
    Plan,
    RankCost,
    SpeedSource,
    apportion,
    balance,
    make_plan,
)

DEFAULT_TILE = {"cuda": 128, "cpu": 16}


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
        return _balanced(config, costs, tile, causal, hop)
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


def _balanced(config: Config, costs: list[RankCost], tile: int, causal: bool, hop: HopCost | None) -> Plan:
    """The balanced plan of all ranks, or of all but the slowest one, two, ... where that is earlier."""
    seq_len, layout = config.seq_len, config.layout.name

    def plan(costs: list[RankCost]) -> Plan:
        tokens = balance(costs, seq_len, tile, layout, causal)
        return make_plan(seq_len, tokens, layout, causal=causal, starts=starts_of(config))

    plans = [plan(costs)]
    alone_ms = [cost.time_ms(seq_len, seq_len**2 / 2, seq_len**2 / 2) for cost in costs]
    slowest = sorted(range(len(costs)), key=lambda rank: -alone_ms[rank])
    for rank in slowest[:-1] if hop else []:
        costs = [replace(cost, max_tokens=0) if i == rank else cost for i, cost in enumerate(costs)]
        with suppress(UserError):  # the others' memory does not hold it
            plans.append(plan(costs))
    return min(plans, key=lambda plan: plan.predicted_ms(costs, hop))
