"""A rank's part of a cache while tokens are decoded over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringexp.kernels import Slots
from ringexp.planning import Plan
from ringexp.ring.iteration import Repeated

GROWTH = 256
"""Slots added at once to a cache that is full, and spare ones of a cache that nothing is said about."""


class RingCache(list[tuple[torch.Tensor, torch.Tensor]]):
    """A rank's cache as FMS hands it on: keys and values [B, slots, Hkv, D] of every layer.

    A rank that is not in the ring has no layers. plan: the prompt's. held: how many slots each rank has
    filled; `slots` are this rank's, with one more at least behind them. length: slots of the sequence so far.
    starts: of each sequence the first slot that is no padding. positions: the next token's in its own
    sequence, [B, 1] on the device. step: decodes it.
    """

    def __init__(self, layers: Any, plan: Plan, starts: Sequence[int], slots: Slots) -> None:
        super().__init__(layers)
        self.plan, self.held, self.length = plan, plan.tokens, plan.seq_len
        self.starts, self.slots = list(starts), slots
        positions = [[self.length - start] for start in starts]
        self.positions = torch.tensor(positions, device=slots.next_slot.device)
        self.step = Repeated()

    def admit(self, owner: int, rank: int) -> None:
        """Make ready for the next token, which `owner` keeps; this cache is that of `rank`."""
        if self and self.slots.filled == self[0][0].shape[1]:
            self._grow()
        self.slots.admit(keep=owner == rank)
        self.held[owner] += 1

    def advance(self) -> None:
        """The token has been decoded."""
        self.length += 1
        self.positions += 1

    def _grow(self) -> None:
        for index, (keys, values) in enumerate(self):
            self[index] = _larger(keys), _larger(values)
        self.step.renew()


def _larger(cache: torch.Tensor) -> torch.Tensor:
    larger = cache.new_empty((cache.shape[0], cache.shape[1] + GROWTH, *cache.shape[2:]))
    larger[:, : cache.shape[1]] = cache
    return larger
