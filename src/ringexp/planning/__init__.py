"""Spans, layouts, partitioners and plans.

Pure Python: importing this package never imports torch, so a plan is printable without a GPU and
testable in milliseconds.

    tokens = apportion(weights=[1.0, 0.5], seq_len=4096, tile=128)
    plan = make_plan(seq_len=4096, tokens=tokens, layout="zigzag")
    for block in plan.blocks(rank=0, source=1): ...
"""

from ringexp.planning.adaptive import AdaptivePlanner
from ringexp.planning.balanced import balanced_plan
from ringexp.planning.blocks import Block, BlockShape, blocks_between
from ringexp.planning.cost import RankCost
from ringexp.planning.decode import next_owner, owners
from ringexp.planning.layouts import LAYOUTS, shards_for
from ringexp.planning.links import HopCost, Links, NodeLinks
from ringexp.planning.masks import Mask
from ringexp.planning.memory import (
    MemoryNeed,
    attention_token_bytes,
    check_memory,
    longest_context,
    ring_token_bytes,
    rotation_bytes,
    validate_memory_limit,
)
from ringexp.planning.partitioners import BY_COST, PARTITIONERS, WEIGHTS, apportion, check_enough_tiles
from ringexp.planning.plan import SHARD_MODES, Plan, make_plan, ring_members
from ringexp.planning.spans import Shard, Span, runs
from ringexp.planning.speeds import SpeedSource
from ringexp.planning.timeline import Timeline, carried_ms, simulate
from ringexp.planning.waterfill import balance

__all__ = [
    "BY_COST",
    "LAYOUTS",
    "PARTITIONERS",
    "SHARD_MODES",
    "WEIGHTS",
    "AdaptivePlanner",
    "Block",
    "BlockShape",
    "HopCost",
    "Links",
    "Mask",
    "MemoryNeed",
    "NodeLinks",
    "Plan",
    "RankCost",
    "Shard",
    "Span",
    "SpeedSource",
    "Timeline",
    "apportion",
    "attention_token_bytes",
    "balance",
    "balanced_plan",
    "blocks_between",
    "carried_ms",
    "check_enough_tiles",
    "check_memory",
    "longest_context",
    "make_plan",
    "next_owner",
    "owners",
    "ring_members",
    "ring_token_bytes",
    "rotation_bytes",
    "runs",
    "shards_for",
    "simulate",
    "validate_memory_limit",
]
