"""Submitting a sweep to SLURM through submitit, following its jobs, and reading what they left.

Runs that can share ranks share a job. What equal earlier runs completed is not submitted again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ringexp.config import Config, SlurmConfig
from ringexp.configure.preflight import Surroundings, check_before_start
from ringexp.errors import UserError
from ringexp.interrupts import undisturbed
from ringexp.launch.supervision import Display
from ringexp.report.console import Console
from ringexp.slurm.job import JobFile
from ringexp.slurm.settings import job_identity, validate
from ringexp.slurm.step import SlurmJob
from ringexp.tracking.completed import CompletedRuns, fingerprint
from ringexp.tracking.content import content_of
from ringexp.tracking.environment import command_line
from ringexp.tracking.files import mark_ended, read_record
from ringexp.tracking.outcomes import (
    RunOutcome,
    check_folders,
    mark_interrupted,
    outcome_of,
    take_completed,
)

if TYPE_CHECKING:
    from submitit.core.core import Executor, Job

POLL_S = 1.0
ASK_S = 5.0
"""Seconds between questions to SLURM itself. A job's result is seen at once."""
CANCEL_S = 60.0
"""Seconds for cancelled jobs to write what they have measured."""

Runs = list[tuple[Config, Path]]
CarryOut = Callable[[JobFile], None]


@dataclass
class _Submitted:
    """A submitted job and its runs."""

    job: Job[None]
    runs: Runs
    state: str = ""

    @property
    def name(self) -> str:
        return f"job {self.job.job_id} ({len(self.runs)} runs)"


def execute(
    runs: Sequence[tuple[Config, Path]], console: Console, settings: SlurmConfig, carry_out: CarryOut
) -> list[RunOutcome]:
    """Carry out runs on the cluster; return their outcomes in the order given.

    An interrupt cancels the jobs. If this process is killed they go on; the next call finds their results.

    Args:
        runs: validated settings and folders.
        console: where progress is shown.
        settings: the nodes, time and queue of each job.
        carry_out: what a job does; submitit pickles it by its name.

    Raises:
        UserError: for settings that no cluster could meet.
    """
    validate(settings)
    check_folders([run_dir for _, run_dir in runs])
    place = job_identity(settings)
    refused = _refused(runs, settings)
    todo = [
        (config, run_dir)
        for config, run_dir in runs
        if run_dir not in refused and not take_completed(config, run_dir, True, place)
    ]
    submitted: list[_Submitted] = []
    with console.progress() as display:
        try:
            for group in groups(todo):
                try:
                    submitted.append(_Submitted(_submit(group, settings, carry_out), group))
                except UserError as error:
                    refused |= dict.fromkeys((run_dir for _, run_dir in group), error)
                    continue
                display.event({"stage": f"submitted {submitted[-1].name}", "total": None})
                if settings.executor == "local":  # it would start all at once
                    _follow(submitted, display)
            _follow(submitted, display)
        except KeyboardInterrupt:
            try:
                _cancel(submitted, display)
            finally:
                with undisturbed():
                    mark_interrupted(todo, "interrupted: Ctrl-C")
            raise
    outcomes = [refused.get(run_dir) or outcome_of(run_dir) for _, run_dir in runs]
    for (config, run_dir), came_to in zip(runs, outcomes, strict=True):
        if not isinstance(came_to, Exception):
            CompletedRuns(config.completed_dir, place).add(fingerprint(config, content_of(config)), run_dir)
    return outcomes


def _refused(runs: Sequence[tuple[Config, Path]], settings: SlurmConfig) -> dict[Path, UserError]:
    """Return the runs that are sure to fail, each with the reason, before a job is submitted for them."""
    gpus = settings.nodes * (settings.gpus_per_node or 0)
    refused: dict[Path, UserError] = {}
    for config, run_dir in runs:
        device = config.device if config.device != "auto" else "cuda" if gpus else "cpu"
        where = Surroundings(device, gpus or None, settings.nodes, here=False)
        try:
            check_before_start(config, config.transport.name, where)
        except UserError as error:
            refused[run_dir] = error
    return refused


def groups(runs: Sequence[tuple[Config, Path]]) -> list[Runs]:
    """Group runs that can share ranks, by settings alone: the machine of a job is not known yet."""
    by_settings: dict[str, Runs] = {}
    for config, run_dir in runs:
        hetero, model = asdict(config.hetero), asdict(config.model)
        shared = [hetero, model, config.transport.name, config.device, config.seed]
        by_settings.setdefault(json.dumps(shared, sort_keys=True), []).append((config, run_dir))
    return list(by_settings.values())


def _submit(runs: Runs, settings: SlurmConfig, carry_out: CarryOut) -> Job[None]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # we report failures ourselves
    world_size = runs[0][0].world_size
    nodes = min(settings.nodes, world_size)
    job = SlurmJob(nodes, settings.cpus_per_rank, tuple(settings.srun))
    file = JobFile(
        runs, resume=True, command=command_line(), job=None if settings.executor == "local" else job
    )
    folder = runs[0][1] / "submitted"  # of this submission only: job numbers may come again
    runs[0][1].mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)  # for the user alone: what is in it is unpickled by the job
    try:
        return _executor(folder, settings, nodes, -(-world_size // nodes)).submit(carry_out, file)
    except (FailedJobError, FailedSubmissionError) as error:
        sbatch_errors = [line.strip() for line in str(error).splitlines() if line.startswith("sbatch: error")]
        reason = "; ".join(sbatch_errors) or " ".join(str(error).split())
        raise UserError(f"SLURM does not take the job: {reason} (settings: hydra.launcher.*)") from error
    except FileNotFoundError as error:
        raise UserError(f"hydra/launcher=slurm needs {error.filename} on PATH: is this a cluster?") from error


def _executor(folder: Path, settings: SlurmConfig, nodes: int, ranks_per_node: int) -> Executor:
    from submitit import LocalExecutor, SlurmExecutor

    if settings.executor == "local":
        local = LocalExecutor(folder)
        local.update_parameters(
            timeout_min=settings.time_min,
            signal_delay_s=settings.end_signal_s,
            gpus_per_node=settings.gpus_per_node or 0,
            setup=list(settings.setup),
        )
        return local
    try:
        slurm = SlurmExecutor(folder, max_num_timeout=0)
    except RuntimeError as error:
        raise UserError("hydra/launcher=slurm needs srun on PATH; is this a cluster's login node?") from error
    memory = settings.mem_gb_per_node
    wanted = {
        "job_name": "ringexp",
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "time": settings.time_min,
        "nodes": nodes,
        "ntasks_per_node": ranks_per_node,
        "gpus_per_node": settings.gpus_per_node,
        "cpus_per_task": settings.cpus_per_rank,
        "mem": None if memory is None else f"{int(memory * 1024)}M",
        "exclusive": settings.exclusive or None,
        "signal_delay_s": settings.end_signal_s,
        "setup": list(settings.setup) or None,
        "additional_parameters": dict(settings.sbatch) or None,
        "use_srun": False,  # the job starts its ranks itself, set after set
    }
    slurm.update_parameters(**{name: value for name, value in wanted.items() if value is not None})
    return slurm


def _follow(submitted: Sequence[_Submitted], display: Display) -> None:
    """Wait for all jobs, show changes of their state, and mark runs that an ended job did not mark."""
    waiting, asked_at = list(submitted), 0.0
    while waiting:
        force = time.monotonic() - asked_at > ASK_S
        asked_at = time.monotonic() if force else asked_at
        for submission in list(waiting):
            task = submission.job.task(0)  # the batch script; see `slurm.job`
            ended = task.done(force_check=force)
            _show(submission, "ended" if ended else task.state.lower(), display)
            if ended:
                waiting.remove(submission)
                _mark(submission)
        time.sleep(POLL_S if waiting else 0)


def _show(submission: _Submitted, state: str, display: Display) -> None:
    if state != submission.state and state != "unknown":
        submission.state = state
        display.event({"stage": f"{submission.name} {state}", "total": None})


def _mark(submission: _Submitted) -> None:
    """Mark runs that an ended job did not mark: it was cancelled while pending, or killed, or lost a node."""
    records = {run_dir: read_record(run_dir) for _, run_dir in submission.runs}
    unmarked = [run_dir for run_dir, record in records.items() if record is None or not record.has_ended]
    if unmarked:
        job = submission.job
        reason = f"SLURM job {job.job_id} ended ({job.state}); its log: {job.paths.stderr}"
        for run_dir in unmarked:
            mark_ended(run_dir, "interrupted", reason)


def _cancel(submitted: Sequence[_Submitted], display: Display) -> None:
    """Cancel the jobs that have not ended, and wait a limited time for what they still write."""
    running = [submission for submission in submitted if submission.state != "ended"]
    for submission in running:
        display.event({"stage": f"cancelling {submission.name}", "total": None})
        submission.job.cancel(check=False)
    deadline = time.monotonic() + CANCEL_S
    with suppress(KeyboardInterrupt):  # a second Ctrl-C waits no longer
        while time.monotonic() < deadline:
            if all(submission.job.task(0).done(True) for submission in running):
                return
            time.sleep(POLL_S)
