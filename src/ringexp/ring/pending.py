"""A shard of keys and values on its way to the rank that will compute with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ringexp.kernels import ArrivalFlags, Sending

KeysValues: TypeAlias = "torch.Tensor | tuple[torch.Tensor, torch.Tensor]"
"""Keys and values, [B, L, Hkv, D] each: a pair, or one tensor [2, B, L, Hkv, D]."""


@dataclass(slots=True)
class PendingShard:
    """One shard that a rank computes with. It may still be on its way.

    Attributes:
        source: The rank whose keys and values these are.
        receive: Waits for the shard and returns it. On CUDA the current stream waits, not the host.
        announce: Returns the shard at once, with the flags that a kernel waits for before it reads each part.
            Takes an int32 [1] tensor into which the kernel writes how long it waited. To be called instead of
            `receive`; the kernel then gives the shard's memory back to the sender. None: call `receive`.
        sending: The copies of this shard that the first kernel launch has to send to other ranks, if the
            transport leaves that to the kernel.
    """

    source: int
    receive: Callable[[], KeysValues]
    announce: Callable[[torch.Tensor], tuple[torch.Tensor, ArrivalFlags]] | None = None
    sending: Sending | None = None

    @classmethod
    def local(
        cls, rank: int, k: torch.Tensor, v: torch.Tensor, sending: Sending | None = None
    ) -> PendingShard:
        """Return the rank's own shard, keys and values [B, L, Hkv, D], for which no wait is necessary."""
        return cls(rank, lambda: (k, v), None, sending)
