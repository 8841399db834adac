"""Throttles: resolve the name of one, and apply it on the launcher's side and on the rank's.

    name = resolve_throttle("auto", "cuda", [100, 50])            # -> "mps"
    with host_throttle(name, [100, 50], workdir) as envs:         # launcher: before the ranks start
        ...
    with rank_throttle(name, 50, "cuda:1") as applied:            # rank: around all of its work
        ...
        applied.pacer.settle(elapsed_s)                           # after each stretch of CPU compute
        applied = applied.changed(25)                             # from here on, if the throttle can change

A new throttle is one file with a subclass of `applied.Throttle` and one entry in `choices.THROTTLES`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.choices import AUTO, THROTTLES, ThrottleSpec
from ringexp.errors import UserError
from ringexp.hetero.applied import AppliedThrottle, Throttle
from ringexp.hetero.profiles import validate_percentages

if TYPE_CHECKING:
    import torch

UNTHROTTLED = "none"
"""The throttle of ranks that all have 100 %."""


def load_throttle(name: str) -> Throttle:
    """Return the code of a throttle. Raises UserError for an unknown name."""
    spec = THROTTLES[name]
    return spec.load()(spec)


def is_available(spec: ThrottleSpec) -> bool:
    """Return whether the program that a throttle needs is on PATH."""
    return not spec.program or shutil.which(spec.program) is not None


def resolve_throttle(
    requested: str, device_type: str, percentages: Sequence[float], drifting: bool = False
) -> str:
    """Return the name of the throttle to use, checked against device and machine.

    Args:
        requested: `hetero.throttle`.
        device_type: `cuda` or `cpu`.
        percentages: one per rank. If all are 100 and none will change there is nothing to throttle: the
            answer is `none`, unless the requested throttle measures each device.
        drifting: whether percentages change in mid-run; `auto` is then a throttle that can change.

    Raises:
        UserError: if the throttle cannot work here.
    """
    all_full = all(value == 100 for value in validate_percentages(percentages)) and not drifting
    if requested == AUTO:
        return UNTHROTTLED if all_full else _automatic(device_type, drifting)
    THROTTLES.check(requested)
    spec = THROTTLES[requested]
    _check_device(spec, device_type)
    if not is_available(spec):
        raise UserError(
            f"hetero.throttle={requested} needs the program {spec.program}, which is not on PATH: "
            f"{spec.install}, or use hetero.throttle={_automatic(device_type, drifting)} or auto"
        )
    if spec.measures_each_device and not all_full:
        raise UserError(
            f"hetero.throttle={requested} slows nothing, but hetero.percentages={list(percentages)}: "
            "give 100 for every rank, or use another throttle"
        )
    return UNTHROTTLED if all_full and not spec.measures_each_device else requested


def _automatic(device_type: str, drifting: bool) -> str:
    """Return the first throttle of a device that can be used here."""
    candidates = [
        (spec.auto_rank, spec)
        for spec in THROTTLES
        if spec.auto_rank is not None and device_type in spec.devices
    ]
    fitting = [spec for _, spec in sorted(candidates, key=lambda candidate: candidate[0])]
    return next(
        spec.name for spec in fitting if is_available(spec) and (spec.changes_in_mid_run or not drifting)
    )


def _check_device(spec: ThrottleSpec, device_type: str) -> None:
    """Raise UserError unless a throttle works on this type of device."""
    if device_type not in spec.devices:
        fitting = [other.name for other in THROTTLES if device_type in other.devices]
        raise UserError(
            f"hetero.throttle={spec.name} works on {' and '.join(spec.devices)} only, but "
            f"device={device_type}: use one of {AUTO}, {', '.join(fitting)}"
        )


def takes_any_profile(name: str, device_type: str) -> bool:
    """Return whether one set of ranks under this throttle can run jobs of any percentages."""
    return device_type == "cpu" and THROTTLES[name].per_process


def starting_throttle(name: str, device_type: str) -> str:
    """Return the throttle that ranks start with, for a job that asks for `name`.

    Jobs that can share ranks all start with the throttle that can reach every percentage.
    """
    return _automatic(device_type, drifting=True) if takes_any_profile(name, device_type) else name


def host_throttle(
    name: str, percentages: Sequence[float], workdir: Path, drifting: bool = False
) -> AbstractContextManager[list[dict[str, str]]]:
    """Run the launcher's side of a throttle, around the life of the ranks; see `Throttle.on_host`.

    Args:
        name: a name from `resolve_throttle`.
        percentages: one per rank.
        workdir: an existing folder for temporary files.
        drifting: whether ranks will change their percentages.

    Returns:
        A context that gives the environment variables of each rank.

    Raises:
        UserError: if what the throttle needs cannot be started.
    """
    return load_throttle(name).on_host(percentages, workdir, drifting)


def rank_throttle(
    name: str, percentage: float, device: str | torch.device
) -> AbstractContextManager[AppliedThrottle]:
    """Slow this rank for the time of a block; enter it in the thread that computes.

    Args:
        name: a name from `resolve_throttle`.
        percentage: this rank's, in (0, 100].
        device: the device that this rank computes on.

    Returns:
        A context that gives the throttle in effect.

    Raises:
        UserError: if the throttle is not supported here.
        RuntimeError: if it did not take effect.
    """
    return load_throttle(name).on_rank(percentage, device)
