"""A throttle in effect on one rank, and what every throttle has to provide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.choices import ThrottleSpec
from ringexp.hetero.pacing import Pacer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AppliedThrottle:
    """The throttle that slows this rank, and the part of the device that it leaves.

    Attributes:
        spec: the kind of throttle.
        percentage: the percentage that was asked for.
        sm_count: SMs granted to this process. None on a CPU.
        sm_total: SMs of the device. None on a CPU, and where the total cannot be found out.
        pacer: call its `settle(elapsed_s)` after each stretch of CPU compute. It waits only if emulated.
        cpu_share: part of its cores' time that this rank got in a short test when it was throttled; None
            if there was no test. It does not change with the percentage.
        cublas_sms: SMs that cuBLAS is limited to, because its products are wrong with all granted SMs; None
            without a limit.
        stream: the limited CUDA stream, current in the thread that applied the throttle. None if every
            stream is limited alike. See `green_context` for what stays unlimited.
        change: changes the percentage of a throttle in effect; None if a running process cannot.
    """

    spec: ThrottleSpec
    percentage: float
    sm_count: int | None = None
    sm_total: int | None = None
    pacer: Pacer = field(default_factory=lambda: Pacer(100))
    cpu_share: float | None = None
    cublas_sms: int | None = None
    stream: torch.cuda.Stream | None = None
    change: Callable[[AppliedThrottle, float], AppliedThrottle] | None = None

    @property
    def name(self) -> str:
        """The throttle's name in `choices.THROTTLES`."""
        return self.spec.name

    @property
    def emulated(self) -> bool:
        """Tell whether the rank waits, in place of having less hardware."""
        return self.spec.emulated

    def changed(self, percentage: float) -> AppliedThrottle:
        """Slow this rank to another percentage; call it in the thread that applied the throttle.

        Returns:
            The throttle at the new percentage, in effect from here on.
        """
        if percentage == self.percentage:
            return self
        assert self.change, f"hetero.throttle={self.name} cannot change, and validate_drift lets none by"
        return self.change(self, percentage)

    @property
    def achieved(self) -> float | None:
        """The part of the device that was granted, in (0, 1]; None if it is not known."""
        if self.cpu_share is not None:
            return self.cpu_share
        return self.sm_count / self.sm_total if self.sm_count and self.sm_total else None


@dataclass(frozen=True)
class Throttle:
    """The code of one throttle: a subclass per mechanism, which `choices.THROTTLES` names.

    This class itself slows nothing on a CPU. A subclass overrides the sides on which it acts.
    """

    spec: ThrottleSpec

    def check_host(self) -> None:
        """Raise UserError if this user cannot apply the throttle on this machine."""

    @contextmanager
    def on_host(
        self, percentages: Sequence[float], workdir: Path, drifting: bool
    ) -> Iterator[list[dict[str, str]]]:
        """Start what the ranks need before they start, and end it after the block.

        Args:
            percentages: one per rank on this machine.
            workdir: an existing folder for temporary files.
            drifting: whether percentages will change.

        Yields:
            The environment variables of each rank.

        Raises:
            UserError: if what the throttle needs cannot be started.
        """
        yield [{} for _ in percentages]

    @contextmanager
    def on_rank(self, percentage: float, device: str | torch.device) -> Iterator[AppliedThrottle]:
        """Slow the calling process for the time of the block; see `throttle.rank_throttle`."""
        yield AppliedThrottle(self.spec, percentage)


def sms_of(device: str | torch.device) -> tuple[int, int]:
    """Return the index of a CUDA device and the number of SMs that this process sees on it."""
    import torch

    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    return index, torch.cuda.get_device_properties(index).multi_processor_count
