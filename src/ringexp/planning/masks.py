"""Masks: which keys a query may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Mask:
    """The rule which keys each query may see, by the global positions of both.

    kind: with "causal" a query sees its own position and all before it, with "full" it sees every key.
    """

    kind: Literal["causal", "full"]

    @classmethod
    def causal(cls) -> Mask:
        """Return the mask of a decoder: no query sees a key after its own position."""
        return cls("causal")

    @classmethod
    def full(cls) -> Mask:
        """Return the mask that hides nothing."""
        return cls("full")

    @classmethod
    def of(cls, causal: bool) -> Mask:
        """Return the mask that a yes or no stands for, as in the config's `model.causal`."""
        return cls.causal() if causal else cls.full()

    @property
    def is_causal(self) -> bool:
        return self.kind == "causal"

    def keys_seen(self, start: int, stop: int, num_keys: int) -> int:
        """Sum up how many keys each query at the positions [start, stop) sees, of keys at [0, num_keys)."""
        if self.is_causal:
            return (stop - start) * (start + stop + 1) // 2
        return (stop - start) * num_keys

    def __str__(self) -> str:
        return self.kind


CAUSAL = Mask.causal()
"""The default mask of a function's parameter."""
