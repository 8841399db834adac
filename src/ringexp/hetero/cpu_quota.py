"""CPU quotas: Linux takes the processor away from a rank (hetero.throttle=cpu_quota).

    with quota_groups([100, 50], cores=1) as folders:    # launcher; None for a rank without a limit
        ...
    with member_of(folder):                              # rank: this process, with all its threads
        ...

It needs the right to make control groups: root on one's own machine, or a delegated subtree.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.errors import UserError
from ringexp.hetero import cgroup
from ringexp.hetero.applied import AppliedThrottle, Throttle
from ringexp.hetero.watchdog import cleaned_up
from ringexp.machine import cores_per_rank

if TYPE_CHECKING:
    import torch

GROUP_ENV = "RINGEXP_CGROUP"
"""The environment variable with the control group that a rank has to join."""


class CpuQuota(Throttle):
    """Limit each rank's CPU time by a control group of its own."""

    def check_host(self) -> None:
        """Raise UserError unless this user may make control groups."""
        check_groups()

    @contextmanager
    def on_host(
        self, percentages: Sequence[float], workdir: Path, drifting: bool
    ) -> Iterator[list[dict[str, str]]]:
        """Make the groups, and yield each rank's as an environment variable."""
        with quota_groups(percentages, cores_per_rank(len(percentages)), drifting) as folders:
            yield [{GROUP_ENV: str(folder)} if folder else {} for folder in folders]

    @contextmanager
    def on_rank(self, percentage: float, device: str | torch.device) -> Iterator[AppliedThrottle]:
        """Join the rank's group and measure the share of CPU time that it gives."""
        import torch

        folder = os.environ.get(GROUP_ENV)
        with member_of(Path(folder) if folder else None):
            share = busy_share(torch.get_num_threads())
            yield AppliedThrottle(self.spec, percentage, cpu_share=share, change=_set_quota)


def _set_quota(applied: AppliedThrottle, percentage: float) -> AppliedThrottle:
    """Change the quota of this rank's group. Raises UserError where the rank may not write it."""
    import torch

    try:
        group = cgroup.own_group()
        cgroup.set_quota(
            Path(os.environ[GROUP_ENV]), group.version, torch.get_num_threads() * percentage / 100
        )
    except OSError as error:
        raise UserError(
            f"hetero.throttle=cpu_quota: the quota cannot be changed ({error}); "
            "use hetero.throttle=cpu_pacing"
        ) from error
    return replace(applied, percentage=percentage)


def check_groups() -> None:
    """Make a control group and remove it. Raises UserError where that is not allowed."""
    try:
        folder = cgroup.make_group(cgroup.own_group(), f"ringexp-{os.getpid()}-probe", 1.0)
    except OSError as error:
        raise _no_group(error) from error
    cgroup.remove_groups([folder])


def _no_group(error: OSError) -> UserError:
    return UserError(
        f"hetero.throttle=cpu_quota cannot make a control group here ({error}): it needs root or a "
        "delegated cgroup; hetero.throttle=cpu_pacing needs neither"
    )


@contextmanager
def quota_groups(
    percentages: Sequence[float], cores: int, drifting: bool = False
) -> Iterator[list[Path | None]]:
    """Make a control group for each rank below 100 %; remove them after the block, however it ends.

    Args:
        percentages: one per rank; 100 is all of the rank's cores.
        cores: cores per rank.
        drifting: percentages may change, so every rank gets a group.

    Yields:
        The group's folder of each rank, or None for a rank without a limit.

    Raises:
        UserError: where this user may not make groups.
    """
    folders: list[Path | None] = []
    try:
        group = cgroup.own_group()
        for rank, percentage in enumerate(percentages):
            name = f"ringexp-{os.getpid()}-{time.monotonic_ns()}-rank{rank}"
            limited = drifting or percentage < 100
            folders.append(cgroup.make_group(group, name, cores * percentage / 100) if limited else None)
    except OSError as error:
        cgroup.remove_groups([folder for folder in folders if folder])
        raise _no_group(error) from error
    made = [folder for folder in folders if folder]
    with cleaned_up(lambda: cgroup.remove_groups(made), cgroup.__file__, *map(str, made)):
        yield folders


@contextmanager
def member_of(folder: Path | None) -> Iterator[None]:
    """Put this process, with all its threads, into a group for the time of the block.

    Args:
        folder: the group; None: stay in the present one.

    Raises:
        UserError: if the process may not be moved there.
    """
    if folder is None:
        yield
        return
    before = cgroup.own_group().folder
    try:
        (folder / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"hetero.throttle=cpu_quota: this process may not be moved to {folder} ({error.strerror}); "
            "use hetero.throttle=cpu_pacing"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # a rank that ends leaves the group anyhow
            (before / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")


def busy_share(threads: int, seconds: float = 0.4) -> float:
    """Multiply matrices for a while. Return the CPU time that this process got, per second and thread."""
    import torch

    x = torch.ones(384, 384)
    torch.mm(x, x)  # the threads exist
    began, used = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - began) < seconds:
        torch.mm(x, x)
    return min((time.process_time() - used) / elapsed / threads, 1.0)
