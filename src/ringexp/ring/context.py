"""The surroundings of a ring on one rank."""

from __future__ import annotations

from dataclasses import dataclass

from ringexp.kernels import Kernel
from ringexp.planning import Plan
from ringexp.ring.clock import Clock
from ringexp.ring.transport import Transport


@dataclass(frozen=True)
class RingContext:
    """Everything that one rank needs to take part in a ring.

    Attributes:
        prefetch_hops: The number of hops that are posted ahead of compute; None: all of them.
        capacity: The number of slots of the cache that a model is asked for; None: as many as are filled.
        filled: The number of those slots that earlier chunks have filled already.
    """

    plan: Plan
    rank: int
    transport: Transport
    kernel: Kernel
    clock: Clock
    prefetch_hops: int | None = None
    capacity: int | None = None
    filled: int = 0
