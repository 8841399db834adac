"""The present speed limits: this rank's throttle, and the percentages of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch

from ringexp.choices import THROTTLES
from ringexp.hetero.applied import AppliedThrottle
from ringexp.hetero.profiles import co_tenants
from ringexp.ring.clock import Clock, make_clock
from ringexp.ring.cuda_driver import device_id
from ringexp.worker.communicator import Communicator
from ringexp.worker.device import hardware_name, synchronize


class ThrottleState:
    """Slow this rank to one percentage after the other, in step with the other ranks.

    Attributes:
        applied: the throttle of this rank as it is now.
        percentages: the percentages of all ranks as they are now; drift changes them.
    """

    def __init__(
        self,
        communicator: Communicator,
        device: torch.device,
        applied: AppliedThrottle,
        percentages: Sequence[float],
    ) -> None:
        self._communicator, self._device = communicator, device
        self.applied, self.percentages = applied, list(percentages)

    def start_job(self, name: str, percentages: Sequence[float]) -> None:
        """Slow the ranks as a job asks, and call the throttle by the job's name for it."""
        self.set_percentages([float(value) for value in percentages])
        self.applied = replace(self.applied, spec=THROTTLES[name])

    def set_percentages(self, percentages: list[float]) -> bool:
        """Slow each rank to its percentage from here on. Return whether any percentage changes.

        All ranks call this with the same list. On CUDA another stream is current afterwards, and a graph has
        to be captured on that one.
        """
        if percentages == self.percentages:
            return False
        synchronize(self._device)
        self.applied = self.applied.changed(percentages[self._communicator.rank])
        self.percentages = percentages
        return True

    def clock(self, only_attention: bool = False) -> Clock:
        """Return a clock for one iteration.

        Args:
            only_attention: the workload has no linear layers.
        """
        return make_clock(self._device, self.applied.pacer, only_attention)

    @property
    def hardware(self) -> str:
        """The name of this rank's device in calibration rows."""
        return hardware_name(self._device, self._communicator.rank, self.applied.spec.measures_each_device)

    @property
    def co_tenants(self) -> str:
        """The other ranks on this rank's device, as calibration rows name them. All ranks ask together."""
        return co_tenants(self.percentages, self._devices, self._communicator.rank)

    @cached_property
    def _devices(self) -> list[str]:
        """The device of each rank; CPU ranks have cores of their own."""
        on_gpu = self._device.type == "cuda"
        device_name = device_id(self._device) if on_gpu else f"cores of rank {self._communicator.rank}"
        return self._communicator.gather(device_name)
