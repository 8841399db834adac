"""Functions that ranks of a test pool run under torch.compile. Ranks import them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import ringexp
from support.model_ranks import TINY, ring_model

TOKENS = [20, 12]


@torch.no_grad()
def compiled(rank: int, name: str) -> tuple[Any, Any]:
    """Return a function's result as it is, and compiled.

    The compiled function runs twice, so that the compiled code is used again.
    """
    function, arguments = FUNCTIONS[name](rank)
    torch._dynamo.reset()
    faster = torch.compile(function, backend="eager")
    wanted = function(*arguments)
    faster(*arguments)
    return wanted, faster(*arguments)


def _inputs(rank: int) -> tuple[torch.Tensor, ringexp.Plan]:
    plan = ringexp.plan(TOKENS, sum(TOKENS), tile=1)
    whole = torch.randn(1, sum(TOKENS), 4, 16, generator=torch.Generator().manual_seed(2))
    return ringexp.shard(whole, plan, rank), plan


def _layer(rank: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    q, plan = _inputs(rank)

    def layer(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(x) + 1
        out = ringexp.ring_attention(hidden, hidden, 2 * hidden, plan)
        return ringexp.unshard(torch.relu(out) * 3, plan)

    return layer, (q,)


def _attention(rank: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    q, plan = _inputs(rank)
    return ringexp.ring_attention, (q, q, q, plan)


def _model(rank: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    model = ring_model(rank, "llama", TINY["llama"], TOKENS, "zigzag")
    return model, (torch.arange(1, sum(TOKENS) + 1).unsqueeze(0),)


def _generation(rank: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    model, (ids,) = _model(rank)
    return lambda ids: ringexp.generate(model, ids, 4), (ids,)  # type: ignore[arg-type]


def _speeds(rank: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    def positive(seq_len: int) -> list[bool]:
        speeds = ringexp.measure_speeds(
            seq_len, num_heads=2, head_dim=16, dtype=torch.float32, max_seconds=0.05
        )
        return [speed > 0 for speed in speeds]

    return positive, (64,)


FUNCTIONS = {
    "layer": _layer,
    "attention": _attention,
    "model": _model,
    "generation": _generation,
    "speeds": _speeds,
}
"""Functions that all ranks call, and their arguments."""
