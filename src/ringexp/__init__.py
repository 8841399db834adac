"""Exact ring-attention prefill on unequal GPUs: measure, plan, run, prove."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ringexp.errors import RingError, UserError

if TYPE_CHECKING:
    from ringexp.api import measure_speeds, ring_attention
    from ringexp.models.fms.generation import generate
    from ringexp.models.fms.strategy import get_model
    from ringexp.planning import Mask, Plan, RankCost
    from ringexp.planning.planner import plan
    from ringexp.ring.groups import close
    from ringexp.ring.shards import positions, shard, unshard

__version__ = "0.1.0"

__all__ = [
    "Mask",
    "Plan",
    "RankCost",
    "RingError",
    "UserError",
    "close",
    "generate",
    "get_model",
    "measure_speeds",
    "plan",
    "positions",
    "ring_attention",
    "shard",
    "unshard",
]

_HOMES = {
    "Mask": "planning",
    "Plan": "planning",
    "RankCost": "planning",
    "plan": "planning.planner",
    "close": "ring.groups",
    "positions": "ring.shards",
    "shard": "ring.shards",
    "unshard": "ring.shards",
    "measure_speeds": "api",
    "ring_attention": "api",
    "generate": "models.fms.generation",
    "get_model": "models.fms.strategy",
}
"""The module of every public name. It is imported on first use: planning needs no torch, the ring no FMS."""


if not TYPE_CHECKING:  # a type checker is to find names that are not there

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__} has no attribute {name}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
