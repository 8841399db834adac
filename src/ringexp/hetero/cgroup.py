"""CPU quotas by control groups (cgroups, version 1 or 2): Linux itself takes the processor away from a rank.

    with quota_groups([100, 50], cores=1) as folders:    # launcher; None for a rank that nothing limits
        ...
    with member_of(folder):                              # rank: this process, with all its threads
        ...

Needs the right to make groups: root on a machine of one's own, or a delegated subtree. Stdlib only, because
it also runs as a script: `python cgroup.py FOLDER...` is the watchdog of a launcher, and removes the groups.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PERIOD_US = 20_000
"""A rank runs until its quota of a period is used up, then stands still until the next period."""

LEAST_QUOTA_US = 1_000  # the kernel's own limit
PATIENCE_S = 10.0
"""How long removing a group waits for its last process to go."""


@dataclass(frozen=True)
class OwnGroup:
    """The group this process is in, in the hierarchy that limits CPU time, and where that is mounted."""

    version: int
    mount: Path
    folder: Path

    @property
    def parents(self) -> list[Path]:
        """Where to try to make new groups: here; under version 2, where a group with processes has no groups
        of limits inside it, also further up."""
        if self.version == 1:
            return [self.folder]
        above = [folder for folder in self.folder.parents if folder.is_relative_to(self.mount)]
        return [self.folder, *above]


def own_group(proc: Path = Path("/proc/self")) -> OwnGroup:
    """Raises OSError where no hierarchy with the cpu controller is mounted."""
    paths = {}
    for line in (proc / "cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        number, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            paths[1] = path
        elif number == "0" and not controllers:
            paths[2] = path
    for line in (proc / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, *_, options = after.split()
        version = {"cgroup": 1, "cgroup2": 2}.get(kind)
        if version == 1 and "cpu" not in options.split(","):
            continue
        if version and version == min(paths, default=0):  # version 1 has the controller where both are
            path = PurePosixPath(paths[version])
            inside = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
            folder = Path(mount) / inside
            return OwnGroup(version, Path(mount), folder if folder.is_dir() else Path(mount))
    raise OSError("no cgroup hierarchy with the cpu controller is mounted")


def quota(share: float) -> tuple[int, int]:
    """Quota and period, microseconds, that give `share` of one core; above 1, of several."""
    period_us = max(PERIOD_US, round(LEAST_QUOTA_US / share))
    return round(share * period_us), period_us


def make_group(own: OwnGroup, name: str, share: float) -> Path:
    """A new group of `share` cores; raises OSError, the first of all places tried, if there can be none."""
    reasons = []
    for parent in own.parents:
        folder = parent / name
        try:
            if (
                own.version == 2
                and "cpu" not in (parent / "cgroup.subtree_control").read_text(encoding="utf-8").split()
            ):
                raise PermissionError(1, f"the cpu controller is not passed on by {parent}")
            folder.mkdir()
        except OSError as error:
            reasons.append(error)
            continue
        try:
            set_quota(folder, own.version, share)
            return folder
        except OSError as error:
            reasons.append(error)
            remove_groups([folder])
    raise reasons[0]


def set_quota(folder: Path, version: int, share: float) -> None:
    """Give a group, new or with processes in it, `share` cores; raises OSError if that may not be."""
    quota_us, period_us = quota(share)
    if version == 1:
        (folder / "cpu.cfs_period_us").write_text(str(period_us), encoding="utf-8")
        (folder / "cpu.cfs_quota_us").write_text(str(quota_us), encoding="utf-8")
    else:
        (folder / "cpu.max").write_text(f"{quota_us} {period_us}", encoding="utf-8")


def remove_groups(folders: Sequence[Path], patience_s: float = PATIENCE_S) -> None:
    """Remove groups as their last processes end; removing twice does no harm."""
    deadline = time.monotonic() + patience_s
    for folder in folders:
        while folder.is_dir():
            try:
                folder.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)


@contextmanager
def quota_groups(
    percentages: Sequence[float], cores: int, drifting: bool = False
) -> Iterator[list[Path | None]]:
    """A group for each rank of `cores` cores that is below 100 %; removed after the block, however it ends.

    drifting: percentages may change, so every rank gets one.

    Raises UserError where this user may not make groups.
    """
    from ringexp.errors import UserError
    from ringexp.hetero.watchdog import cleaned_up

    folders: list[Path | None] = []
    try:
        own = own_group()
        for rank, percentage in enumerate(percentages):
            name = f"ringexp-{os.getpid()}-{time.monotonic_ns()}-rank{rank}"
            limited = drifting or percentage < 100
            folders.append(make_group(own, name, cores * percentage / 100) if limited else None)
    except OSError as error:
        remove_groups([folder for folder in folders if folder])
        raise UserError(
            f"hetero.throttle=cpu_quota cannot make a control group here ({error}): it needs root or a "
            "delegated cgroup; hetero.throttle=cpu_pacing needs neither"
        ) from error
    made = [folder for folder in folders if folder]
    with cleaned_up(lambda: remove_groups(made), __file__, *map(str, made)):
        yield folders


@contextmanager
def member_of(folder: Path | None) -> Iterator[None]:
    """Put this process, with all its threads, into a group for the time of the block; None: leave it.

    Raises UserError if it may not be moved there.
    """
    if folder is None:
        yield
        return
    from ringexp.errors import UserError

    before = own_group().folder
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
        with suppress(OSError):  # a rank that ends leaves anyhow
            (before / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")


def busy_share(threads: int, seconds: float = 0.4) -> float:
    """CPU time that this process gets while it multiplies matrices, per second and thread."""
    import torch

    x = torch.ones(384, 384)
    torch.mm(x, x)  # the threads exist
    began, used = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - began) < seconds:
        torch.mm(x, x)
    return min((time.process_time() - used) / elapsed / threads, 1.0)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    remove_groups([Path(folder) for folder in sys.argv[1:]])
