"""Carry out several runs in as few sets of ranks as they allow; a failed run does not stop the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ringexp.app.rank_sets import rank_sets
from ringexp.app.site import ExecutionSite
from ringexp.config import Config
from ringexp.errors import RunFailed, UserError
from ringexp.interrupts import undisturbed
from ringexp.launch.supervision import Display, jobs_begun
from ringexp.report.console import Console
from ringexp.tracking.content import content_of
from ringexp.tracking.files import begin, mark_ended, read_record
from ringexp.tracking.outcomes import (
    RunOutcome,
    check_folders,
    mark_interrupted,
    outcome_of,
    take_completed,
)
from ringexp.worker.rank_set import Job, RankSet
from ringexp.worker.reference_jobs import SPOT

Failures = dict[Path, UserError | RunFailed]
"""Why runs failed, by their folders."""


def execute(
    runs: Sequence[tuple[Config, Path]],
    console: Console,
    sweep: bool = False,
    site: ExecutionSite | None = None,
) -> list[RunOutcome]:
    """Carry out runs in as few sets of ranks as they allow; return their outcomes in the order given.

    A run that fails ends its ranks; new ranks go on with the jobs after it. An interrupt ends everything and
    marks the runs that had not ended.

    Args:
        runs: validated settings and folders.
        console: where progress is shown.
        sweep: take what equal runs have completed, unless the setting `resume` says otherwise, and measure
            references in this call rather than take those of earlier calls.
        site: where the ranks run; None: this machine.

    Raises:
        UserError: if two runs have one folder.
    """
    check_folders([run_dir for _, run_dir in runs])
    site = site or ExecutionSite()
    failures: Failures = {}
    to_run = [
        (config, run_dir) for config, run_dir in runs if _begins(config, run_dir, site, sweep, failures)
    ]
    try:
        with console.progress() as display:
            stopped = _run_sets(to_run, site, display, failures, sweep)
            if stopped:  # by references that no longer hold: those are measured anew
                _run_sets([run for run in to_run if run[1] in stopped], site, display, failures, True)
    except KeyboardInterrupt as interrupt:
        with undisturbed():
            mark_interrupted(to_run, f"interrupted: {str(interrupt) or 'Ctrl-C'}")
        raise
    return [failures.get(run_dir) or outcome_of(run_dir) for _, run_dir in runs]


def _begins(config: Config, run_dir: Path, site: ExecutionSite, sweep: bool, failures: Failures) -> bool:
    """Tell whether a run needs ranks, and mark it as begun; note why if it cannot work."""
    try:
        run = site.resolve(config)
        site.check(run)
        content_of(config)  # raises for what cannot be read
        if take_completed(config, run_dir, sweep, site.machine(run.device)):
            return False
        begin(run_dir)
    except UserError as error:
        failures[run_dir] = error
        return False
    except OSError as error:
        failures[run_dir] = RunFailed(f"{error.filename or run_dir} cannot be written: {error.strerror}")
        return False
    return True


def _run_sets(
    runs: Sequence[tuple[Config, Path]],
    site: ExecutionSite,
    display: Display,
    failures: Failures,
    own_references: bool,
) -> set[Path]:
    """Carry out all jobs of these runs. Return the folders of runs that ranks refused, as `_run_set` does."""
    stopped: set[Path] = set()
    for ranks in rank_sets(runs, site, own_references):
        folder = runs[0][1] / "ranks"
        stopped |= _run_set(site, ranks, folder / str(_count(folder)), display, failures)
    return stopped


def _count(folder: Path) -> int:
    """Count the sets of ranks whose files are in a folder.

    A job that SLURM requeued finds the sets that it started before.
    """
    return len(list(folder.glob("*")))


def _run_set(
    site: ExecutionSite, ranks: RankSet, workdir: Path, display: Display, failures: Failures
) -> set[Path]:
    """Carry out the jobs of one set, starting its ranks again after each job that fails.

    Returns:
        The folders of runs that ranks did not begin because a stored reference of the run no longer holds.
    """
    jobs, attempt = ranks.jobs, 0
    while jobs:
        folder = workdir / str(attempt)
        try:
            site.run_ranks(replace(ranks, jobs=jobs), folder, display)
            begun = jobs_begun(folder)
            stopped = jobs[begun:] if begun and jobs[begun - 1].role.startswith(SPOT) else []
            return {job.run_dir for job in stopped if job.run_dir}
        except (UserError, RunFailed, OSError) as caught:
            error = RunFailed(f"{type(caught).__name__}: {caught}") if isinstance(caught, OSError) else caught
            begun = jobs_begun(folder)
            lost = jobs[begun - 1 : begun] if begun else jobs  # none begun: the ranks cannot start at all
            for job in lost:
                _note_failure(job, error, bool(begun), display, failures)
            jobs = jobs[begun:] if begun else []
            attempt += 1
    return set()


def _note_failure(
    job: Job, error: UserError | RunFailed, begun: bool, display: Display, failures: Failures
) -> None:
    """Mark the run of a job whose ranks ended; warn if its results were complete or it was a reference."""
    if job.run_dir and begun and _is_complete(job):
        display.event({"warn": f"{job.run_dir.name} is complete; after it: {error}"})
    elif job.run_dir:
        failures[job.run_dir] = error
        mark_ended(job.run_dir, "failed", str(error), overrule=True)
    else:
        display.event({"warn": f"{job.role} reference failed: {error}"})


def _is_complete(job: Job) -> bool:
    record = read_record(job.run_dir) if job.run_dir else None
    return record is not None and record.is_complete and record.key == job.key
