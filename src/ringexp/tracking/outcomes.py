"""The ends of runs, by what is in their folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ringexp.config import Config
from ringexp.errors import RunFailed, UserError
from ringexp.stored import JsonObject
from ringexp.tracking.completed import CompletedRuns, copy_results, fingerprint
from ringexp.tracking.content import content_of
from ringexp.tracking.files import mark_ended, read_record
from ringexp.tracking.results import INTERRUPTED, RunRecord

RunOutcome = RunRecord | UserError | RunFailed
"""The end of a run: its complete results, or the error that says why there are none."""


def outcome_of(run_dir: Path) -> RunOutcome:
    """Return how a run ended, by its results.json."""
    record = read_record(run_dir)
    if record is None or not record.is_complete:
        reason = record.reason if record else None
        return RunFailed(reason or f"the ranks ended without results for {run_dir}")
    if record.exact is False:
        why = record.content.get("why_inexact")
        return RunFailed(str(why or "the output is not that of one process"))
    return record


def check_folders(folders: Sequence[Path]) -> None:
    """Raise UserError if two runs would write to one folder."""
    counted = Counter(folder.absolute() for folder in folders)
    folder, count = counted.most_common(1)[0] if counted else (None, 1)
    if count > 1:
        raise UserError(
            f"{count} runs of the sweep have the same folder {folder}, where each would overwrite the one "
            "before; put ${hydra.job.num} into hydra.sweep.subdir"
        )


def mark_interrupted(runs: Sequence[tuple[Config, Path]], reason: str) -> None:
    """Say of every run that has not ended that it was interrupted, and whether it had begun."""
    for _, run_dir in runs:
        mark_ended(run_dir, INTERRUPTED, reason if read_record(run_dir) else f"not begun ({reason})")


def take_completed(config: Config, run_dir: Path, sweep: bool, machine: JsonObject) -> bool:
    """Copy the results of an equal run that is complete into a folder.

    Args:
        config: the run's settings; `resume` says whether earlier results may be taken.
        run_dir: the run's folder.
        sweep: whether they are taken if `resume` is null.
        machine: what decides speed on the machine, as `machine_facts`.

    Returns:
        True if there was such a run.
    """
    if not (sweep if config.resume is None else config.resume):
        return False
    completed = CompletedRuns(config.completed_dir, machine)
    source = completed.find(fingerprint(config, content_of(config)))
    if source:
        copy_results(source, run_dir)
    return source is not None
