"""CPU pacing: the rank waits after each stretch of compute (hetero.throttle=cpu_pacing)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ringexp.hetero.applied import AppliedThrottle, Throttle
from ringexp.hetero.pacing import Pacer

if TYPE_CHECKING:
    import torch


class CpuPacing(Throttle):
    """Emulate a slower processor by waiting; see `pacing`."""

    @contextmanager
    def on_rank(self, percentage: float, device: str | torch.device) -> Iterator[AppliedThrottle]:
        """Yield a throttle whose pacer waits."""
        yield AppliedThrottle(self.spec, percentage, pacer=Pacer(percentage), change=set_pace)


def set_pace(applied: AppliedThrottle, percentage: float) -> AppliedThrottle:
    """Let the rank's pacer wait for another percentage from here on."""
    applied.pacer.change(percentage)
    return replace(applied, percentage=percentage)
