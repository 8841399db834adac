"""Spans, layouts, partitioners and plans.

Pure Python: importing this package never imports torch, so a plan is printable without a GPU and
testable in milliseconds.

    tokens = apportion(weights=[1.0, 0.5], seq_len=4096, tile=128)
    plan = make_plan(seq_len=4096, tokens=tokens, layout="zigzag")
    for block in plan.blocks(rank=0, source=1): ...
"""

from ringexp.planning.adaptive import AdaptivePlanner
from ringexp.planning.apportion import apportion, check_enough_tiles
from ringexp.planning.balanced import balanced_plan
from ringexp.planning.blocks import Block, BlockShape, blocks_between
from ringexp.planning.cost import RankCost
from ringexp.planning.decode import next_owner, owners
from ringexp.planning.layouts import shards_for
from ringexp.planning.links import EqualLinks, Link, Links, NodeLinks
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
from ringexp.planning.partition import adaptive_planner, plan_for
from ringexp.planning.plan import Plan, make_plan, place_tokens, ring_members
from ringexp.planning.predict import busy_ms, predicted_ms
from ringexp.planning.request import SPLITS, PlanRequest
from ringexp.planning.spans import Shard, Span, runs
from ringexp.planning.speeds import SpeedSource
from ringexp.planning.timeline import Timeline, carried_ms, simulate
from ringexp.planning.waterfill import balance

__all__ = [
    "SPLITS",
    "AdaptivePlanner",
    "Block",
    "BlockShape",
    "EqualLinks",
    "Link",
    "Links",
    "Mask",
    "MemoryNeed",
    "NodeLinks",
    "Plan",
    "PlanRequest",
    "RankCost",
    "Shard",
    "Span",
    "SpeedSource",
    "Timeline",
    "adaptive_planner",
    "apportion",
    "attention_token_bytes",
    "balance",
    "balanced_plan",
    "blocks_between",
    "busy_ms",
    "carried_ms",
    "check_enough_tiles",
    "check_memory",
    "longest_context",
    "make_plan",
    "next_owner",
    "owners",
    "place_tokens",
    "plan_for",
    "predicted_ms",
    "ring_members",
    "ring_token_bytes",
    "rotation_bytes",
    "runs",
    "shards_for",
    "simulate",
    "validate_memory_limit",
]
