"""No throttle: every rank has its whole device (hetero.throttle=none and measured)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ringexp.hetero.applied import AppliedThrottle, Throttle, sms_of

if TYPE_CHECKING:
    import torch


class Unthrottled(Throttle):
    """Slow nothing, and report the device's SMs."""

    @contextmanager
    def on_rank(self, percentage: float, device: str | torch.device) -> Iterator[AppliedThrottle]:
        """Yield a throttle that slows nothing."""
        sm_count = sms_of(device)[1] if str(device).startswith("cuda") else None
        yield AppliedThrottle(self.spec, percentage, sm_count, sm_count)
