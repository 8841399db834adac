"""Throttles: one name for each way to slow a rank down, and its two sides.

    name = resolve_throttle("auto", "cuda", [100, 50])            # -> "mps"
    with host_throttle(name, [100, 50], workdir) as envs:         # launcher: before the ranks start
        ...
    with rank_throttle(name, 50, "cuda:1") as applied:            # rank: around all of its work
        ...
        applied.pacer.settle(elapsed_s)                           # after each stretch of CPU compute
        applied = applied.changed(25)                             # from here on, where the throttle can

A new throttle is a row in DEVICE_OF_THROTTLE and a branch on the side where it acts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.errors import UserError
from ringexp.hetero import cgroup, mps
from ringexp.hetero.mps_control import CONTROL_PROGRAM
from ringexp.hetero.pacing import Pacer
from ringexp.hetero.profiles import validate_percentages
from ringexp.hetero.sm_count import check_grant, sm_total
from ringexp.machine import cores_a_rank

if TYPE_CHECKING:
    import torch

DEVICE_OF_THROTTLE = {
    "none": None,
    "measured": None,
    "mps": "cuda",
    "green_context": "cuda",
    "cpu_pacing": "cpu",
    "cpu_quota": "cpu",
}
"""Every throttle and the device type it works on; None: all.

`none` takes devices of one name for equal, `measured` measures every single one.
"""

IN_PROCESS = ("none", "cpu_pacing")
"""On a CPU these are each rank's own affair: one process can go from any percentage to any other."""

GROUP_ENV = "RINGEXP_CGROUP"
"""The control group that a rank has to join."""


@dataclass(frozen=True)
class AppliedThrottle:
    """What slows this rank.

    name, percentage: as asked.
    emulated: the rank waits instead of having less hardware.
    sm_count, sm_total: SMs granted and of the device; None on CPU, and where the total cannot be found out.
    pacer: `settle(elapsed_s)` after each stretch of CPU compute; waits only if emulated.
    cpu_share: part of its cores' time that this rank got when it was tried out under its quota; else None.
    cublas_sms: how many SMs cuBLAS is held to, because it is wrong with all that were granted; else None.
    stream: the CUDA stream that is limited and current in the thread that applied the throttle; None if
        every stream is as limited as any other. See `green_context` for what it leaves unlimited.
    change: what it takes to slow the rank to another percentage; None if that cannot be in a process.
    """

    name: str
    percentage: float
    emulated: bool
    sm_count: int | None
    sm_total: int | None
    pacer: Pacer
    cpu_share: float | None = None
    cublas_sms: int | None = None
    stream: torch.cuda.Stream | None = None
    change: Callable[[AppliedThrottle, float], AppliedThrottle] | None = None

    def changed(self, percentage: float) -> AppliedThrottle:
        """This rank slowed to another percentage from here on, in the thread that applied the throttle.

        What it was tried out to get, `cpu_share`, stays what it was at the start.
        """
        if percentage == self.percentage:
            return self
        assert self.change, f"hetero.throttle={self.name} cannot change, and validate_drift lets none by"
        return self.change(self, percentage)

    @property
    def achieved(self) -> float | None:
        """sm_count / sm_total or cpu_share, in (0, 1]: the part of the device granted; None if not known."""
        if self.cpu_share is not None:
            return self.cpu_share
        return self.sm_count / self.sm_total if self.sm_count and self.sm_total else None


def resolve_throttle(
    requested: str, device_type: str, percentages: Sequence[float], drifting: bool = False
) -> str:
    """The throttle to use: `auto` becomes a name, and a name is checked against device and machine.

    requested: `hetero.throttle`. device_type: `cuda` or `cpu`. Where all percentages are 100 there is nothing
    to throttle and the answer is `none`, unless `measured` was asked for. drifting: they change in mid-run,
    and `auto` is a throttle that can. Raises UserError for what cannot work.
    """
    all_full = all(value == 100 for value in validate_percentages(percentages)) and not drifting
    if requested == "auto":
        if all_full:
            return "none"
        if device_type == "cpu":
            return "cpu_pacing"
        return "mps" if mps.mps_available() and not drifting else "green_context"

    _check_name(requested, "auto")
    wanted = DEVICE_OF_THROTTLE[requested]
    if wanted not in (None, device_type):
        fitting = [name for name, on in DEVICE_OF_THROTTLE.items() if on in (None, device_type)]
        raise UserError(
            f"hetero.throttle={requested} works on {wanted} only, but device={device_type}: "
            f"use one of auto, {', '.join(fitting)}"
        )
    if requested == "mps" and not mps.mps_available():
        raise UserError(
            f"hetero.throttle=mps needs the program {CONTROL_PROGRAM}, which is not on PATH: install the "
            f"NVIDIA driver's compute utilities, or use hetero.throttle=green_context or auto"
        )
    if requested == "measured" and not all_full:
        raise UserError(
            f"hetero.throttle=measured slows nothing, but hetero.percentages={list(percentages)}: "
            "give 100 for every rank, or use another throttle"
        )
    return "none" if all_full and requested != "measured" else requested


@contextmanager
def host_throttle(
    name: str, percentages: Sequence[float], workdir: Path, drifting: bool = False
) -> Iterator[list[dict[str, str]]]:
    """The launcher's side, around the life of the ranks; yields the environment variables of each rank.

    name: from `resolve_throttle`. workdir: an existing folder for temporary files. drifting: ranks will
    change their percentages.
    Raises UserError if what the throttle needs cannot be started.
    """
    _check_name(name)
    if name == "mps":
        sm_total_env = mps.sm_total_environment()
        with mps.mps_daemon(workdir) as variables:
            yield mps.rank_environments({**variables, **sm_total_env}, percentages)
    elif name == "cpu_quota":
        with cgroup.quota_groups(percentages, cores_a_rank(len(percentages)), drifting) as folders:
            yield [{GROUP_ENV: str(folder)} if folder else {} for folder in folders]
    else:
        yield [{} for _ in percentages]


@contextmanager
def rank_throttle(name: str, percentage: float, device: str | torch.device) -> Iterator[AppliedThrottle]:
    """A rank's side, around all work that is to be slow; in the thread that computes.

    name: from `resolve_throttle`. device: where this rank computes. Raises UserError if the throttle is not
    supported here, RuntimeError if it did not take effect.
    """
    _check_name(name)
    device_type = str(device).partition(":")[0]
    no_wait = Pacer(100)
    if name == "cpu_pacing":
        yield AppliedThrottle(name, percentage, True, None, None, Pacer(percentage), change=_paced)
    elif name == "cpu_quota":
        import torch

        folder = os.environ.get(GROUP_ENV)
        with cgroup.member_of(Path(folder) if folder else None):
            share = cgroup.busy_share(torch.get_num_threads())
            yield AppliedThrottle(name, percentage, False, None, None, no_wait, share, change=_given_quota)
    elif device_type != "cuda":
        yield AppliedThrottle(name, percentage, False, None, None, no_wait)
    elif name == "green_context":
        from ringexp.hetero.green_context import SmGrant, green_contexts

        def applied(percentage: float, grant: SmGrant) -> AppliedThrottle:
            limited = (grant.sm_count, grant.sm_total, no_wait)
            return AppliedThrottle(name, percentage, False, *limited, stream=grant.stream, change=switched)

        with green_contexts(device) as limit:

            def switched(_: AppliedThrottle, percentage: float) -> AppliedThrottle:
                return applied(percentage, limit(percentage))

            yield applied(percentage, limit(percentage))
    else:
        index, visible = _visible_sms(device)
        total, cublas_sms = visible, None
        if name == "mps":
            from ringexp.hetero.blas import mend_cublas

            total = sm_total(index)
            check_grant(name, percentage, visible, total, mps.SM_GRANULE)
            cublas_sms = mend_cublas(device)
        yield AppliedThrottle(name, percentage, False, visible, total, no_wait, None, cublas_sms)


def _paced(applied: AppliedThrottle, percentage: float) -> AppliedThrottle:
    applied.pacer.change(percentage)
    return replace(applied, percentage=percentage)


def _given_quota(applied: AppliedThrottle, percentage: float) -> AppliedThrottle:
    """Raises UserError where the rank may not write its own quota."""
    import torch

    try:
        own = cgroup.own_group()
        cgroup.set_quota(Path(os.environ[GROUP_ENV]), own.version, torch.get_num_threads() * percentage / 100)
    except OSError as error:
        raise UserError(
            f"hetero.throttle=cpu_quota: the quota cannot be changed ({error}); "
            "use hetero.throttle=cpu_pacing"
        ) from error
    return replace(applied, percentage=percentage)


def _visible_sms(device: str | torch.device) -> tuple[int, int]:
    """Index of a CUDA device and the SMs that this process sees on it."""
    import torch

    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    return index, torch.cuda.get_device_properties(index).multi_processor_count


def _check_name(name: str, *more: str) -> None:
    allowed = [*more, *DEVICE_OF_THROTTLE]
    if name not in allowed:
        raise UserError(f"hetero.throttle={name} is unknown: use one of {', '.join(allowed)}")
