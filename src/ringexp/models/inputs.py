"""A prompt on the ranks of a ring: cut by positions, with padding on the left of shorter sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ringexp.planning import Plan
from ringexp.ring.shards import positions, shard


@dataclass(frozen=True)
class LocalInputs:
    """One rank's part of a prompt.

    Attributes:
        x: the tokens, or their hidden states, [B, L, ...].
        positions: positions [B, L], each within its own sequence.
    """

    x: torch.Tensor
    positions: torch.Tensor


def local_inputs(x: torch.Tensor, plan: Plan, rank: int) -> LocalInputs:
    """Cut the queries of `rank` out of the whole prompt x [B, S, ...]."""
    slots = positions(plan, rank, x.device)
    return LocalInputs(shard(x, plan, rank), rope_positions(slots, plan.starts or [0] * x.shape[0]))


def rope_positions(slots: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
    """Return positions [B, L] within sequences that begin at `starts`, for slots [L]; 0 for padding."""
    return (slots - torch.tensor(starts, device=slots.device).unsqueeze(1)).clamp(min=0)


def padded(prompts: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Return token ids of prompts of any lengths as one batch [B, S], padded with zeros on the left."""
    longest = max(map(len, prompts))
    return torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)


def unpadded(x: torch.Tensor, plan: Plan) -> list[torch.Tensor]:
    """Split a whole prompt [B, S, ...] into parts without padding: itself, or sequence by sequence."""
    if not plan.starts:
        return [x]
    return [x[index : index + 1, start:] for index, start in enumerate(plan.starts)]
