"""One rank's part of a cache while tokens are decoded over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ringexp.kernels import Slots
from ringexp.planning import Plan
from ringexp.ring.iteration import Repeated

GROWTH = 256
"""Slots that are added to a full cache, and spare slots of a cache for an unknown number of new tokens."""


class RingCache(list[tuple[torch.Tensor, torch.Tensor]]):
    """One rank's cache as FMS hands it on: keys and values [B, slots, Hkv, D] of every layer.

    A rank that is not in the ring has no layers.

    Attributes:
        plan: the prompt's plan.
        filled_slots: the number of slots that each rank has filled.
        length: slots of the sequence by now.
        starts: the first slot of each sequence that is no padding.
        slots: this rank's slots; at least one more is free behind them.
        positions: the next token's position in each sequence, [B, 1] on the device.
        step: decodes the next token.
    """

    def __init__(
        self,
        layers: Iterable[tuple[torch.Tensor, torch.Tensor]],
        plan: Plan,
        starts: Sequence[int],
        slots: Slots,
    ) -> None:
        super().__init__(layers)
        self.plan, self.filled_slots, self.length = plan, plan.tokens, plan.seq_len
        self.starts, self.slots = list(starts), slots
        positions = [[self.length - start] for start in starts]
        self.positions = torch.tensor(positions, device=slots.next_slot.device)
        self.step = Repeated()

    def admit(self, owner: int, rank: int) -> None:
        """Prepare for the next token, which the rank `owner` keeps; this cache belongs to `rank`."""
        if self and self.slots.filled == self[0][0].shape[1]:
            self._grow()
        self.slots.admit(keep=owner == rank)
        self.filled_slots[owner] += 1

    def advance(self) -> None:
        """Count a token that has been decoded."""
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
