"""The place and the name of a record: from the settings, else from the environment, else the default."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ringexp.config import TRACKER_MODES, TrackerConfig
from ringexp.errors import UserError
from ringexp.names import MAX_WANDB_NAME, MAX_WANDB_TAG, shortened

OTHER_MODES = {"dryrun": "offline", "run": "online"}
"""Older names of wandb's modes."""


@dataclass(frozen=True)
class Choice:
    """The arguments of `wandb.init`. Names and tags are within wandb's limits."""

    mode: str
    project: str
    entity: str | None
    group: str | None
    name: str
    tags: list[str]


def chosen_mode(tracker: TrackerConfig, environment: Mapping[str, str] = os.environ) -> str:
    """Return offline, online or disabled. Raises UserError for another WANDB_MODE."""
    if tracker.mode is not None:
        return tracker.mode
    wandb_mode = environment.get("WANDB_MODE") or "offline"
    mode = OTHER_MODES.get(wandb_mode, wandb_mode)
    if mode not in TRACKER_MODES:
        raise UserError(f"WANDB_MODE={wandb_mode} is unknown; use one of {', '.join(TRACKER_MODES)}")
    return mode


def choose(
    tracker: TrackerConfig,
    folder: Path,
    tags: Sequence[str],
    job_type: str,
    environment: Mapping[str, str] = os.environ,
) -> Choice:
    """Return the arguments of `wandb.init` for the record of a run or report.

    Args:
        tracker: the settings; for a null setting the environment decides.
        folder: the folder of the run or report; the record is named after it.
        tags: the tags of every record; the tags of the settings or of WANDB_TAGS come after them.
        job_type: `run` or `report`.
        environment: variables by name.
    """
    of_environment = [tag.strip() for tag in (environment.get("WANDB_TAGS") or "").split(",")]
    all_tags = [*tags, *(of_environment if tracker.tags is None else tracker.tags)]
    name = environment.get("WANDB_NAME") or (folder if job_type == "run" else folder.parent).name
    return Choice(
        mode=chosen_mode(tracker, environment),
        project=tracker.project or environment.get("WANDB_PROJECT") or "ringexp",
        entity=tracker.entity or environment.get("WANDB_ENTITY") or None,
        group=_name(tracker.group or environment.get("WANDB_RUN_GROUP")),
        name=_name(name if job_type == "run" else f"{job_type} {name}") or job_type,
        tags=list(dict.fromkeys(shortened(tag, MAX_WANDB_TAG) for tag in all_tags if tag)),
    )


def _name(text: str | None) -> str | None:
    return shortened(text, MAX_WANDB_NAME) if text else None
