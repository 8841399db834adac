"""From a config and a source of speeds to the plan; the same function in the launcher and on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ringexp.config import Config
from ringexp.planning import WEIGHTS, Plan, SpeedSource, apportion, balance, make_plan

DEFAULT_TILE = {"cuda": 128, "cpu": 16}


def plan_for(
    config: Config,
    source: SpeedSource,
    device_type: str,
    causal: bool,
    room: Sequence[int | None] | None = None,
) -> Plan:
    """Partitioner -> whole tiles -> layout.

    room: the most tokens that each rank's memory holds, None: any number; `balanced` keeps to it.
    Raises UserError if the prompt has too few tiles, or does not fit.
    """
    tile = config.tile or DEFAULT_TILE[device_type]
    if config.partitioner.name == "balanced":
        costs = source.costs(causal)
        if room:
            costs = [replace(cost, max_tokens=most) for cost, most in zip(costs, room, strict=True)]
        tokens = balance(costs, config.seq_len, tile, config.layout.name, causal)
    else:
        weights = list(WEIGHTS[config.partitioner.name](source))
        tokens = apportion(weights, config.seq_len, tile)
    return make_plan(config.seq_len, tokens, config.layout.name, shard=config.shard, causal=causal, tile=tile)
