"""Weights that are equal on all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from ringexp.ring import groups


def broadcast_weights(model: nn.Module, broadcast: Callable[[torch.Tensor, int], None] | None = None) -> None:
    """Give every rank the parameters and buffers of rank 0. All ranks call this together.

    Args:
        model: has the same tensors on every rank.
        broadcast: makes a tensor the same on every rank as on the rank that is named. None: over the default
            group; without torch.distributed nothing is done.
    """
    if broadcast is None:
        if not dist.is_initialized():
            return
        broadcast = groups.broadcast
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            broadcast(tensor, 0)
