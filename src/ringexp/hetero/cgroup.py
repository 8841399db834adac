"""Control groups of Linux (cgroups, version 1 or 2) that limit CPU time.

Stdlib only, because it also runs as a script: `python cgroup.py FOLDER...` is the watchdog of a launcher. It
waits for its stdin to close and removes the groups.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PERIOD_US = 20_000
"""Length of a quota's period. A process runs until its quota of the period is used up, then stands still."""

LEAST_QUOTA_US = 1_000
"""The smallest quota that Linux takes."""

PATIENCE_S = 10.0
"""Seconds for which the removal of a group waits for the last process of the group to end."""


@dataclass(frozen=True)
class OwnGroup:
    """The group of this process in the hierarchy that limits CPU time.

    Attributes:
        version: of control groups, 1 or 2.
        mount: the folder at which the hierarchy is mounted.
        folder: the group itself.
    """

    version: int
    mount: Path
    folder: Path

    @property
    def parents(self) -> list[Path]:
        """Groups in which to try to make new ones, in order.

        Under version 2 a group that has processes cannot have limited groups inside it, so those above it
        are tried too.
        """
        if self.version == 1:
            return [self.folder]
        above = [folder for folder in self.folder.parents if folder.is_relative_to(self.mount)]
        return [self.folder, *above]


def own_group(proc: Path = Path("/proc/self")) -> OwnGroup:
    """Return the group of a process. Raises OSError if no hierarchy with the cpu controller is mounted."""
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
    """Return (quota, period) in microseconds for a number of cores, which may be below 1."""
    period_us = max(PERIOD_US, round(LEAST_QUOTA_US / share))
    return round(share * period_us), period_us


def make_group(own: OwnGroup, name: str, share: float) -> Path:
    """Make a group that may use `share` cores.

    Raises:
        OSError: if no group can be made; it is the error of the first place that was tried.
    """
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
    """Let a group use `share` cores from now on. Raises OSError if this user may not set that."""
    quota_us, period_us = quota(share)
    if version == 1:
        (folder / "cpu.cfs_period_us").write_text(str(period_us), encoding="utf-8")
        (folder / "cpu.cfs_quota_us").write_text(str(quota_us), encoding="utf-8")
    else:
        (folder / "cpu.max").write_text(f"{quota_us} {period_us}", encoding="utf-8")


def remove_groups(folders: Sequence[Path], patience_s: float = PATIENCE_S) -> None:
    """Remove groups as their last processes end. Removing a group twice does no harm."""
    deadline = time.monotonic() + patience_s
    for folder in folders:
        while folder.is_dir():
            try:
                folder.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    remove_groups([Path(folder) for folder in sys.argv[1:]])
