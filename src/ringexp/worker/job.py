"""One job on one rank: prepare -> measure -> check -> result. All ranks run this in step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ringexp.stored import an_object
from ringexp.tracking.completed import CompletedRuns, fingerprint
from ringexp.tracking.content import content_of
from ringexp.tracking.environment import environment
from ringexp.tracking.schema import described
from ringexp.tracking.tracker import Tracker
from ringexp.worker.accuracy import check_output
from ringexp.worker.checkpoint import with_checkpoint_check
from ringexp.worker.decode import measure_decoding
from ringexp.worker.measure import Measured, measure, short_collections
from ringexp.worker.prepare import PreparedJob, prepare
from ringexp.worker.rank_set import Job
from ringexp.worker.result import run_result
from ringexp.worker.session import Session
from ringexp.worker.single_device import remember_single_device


@torch.inference_mode()
def run_job(session: Session, job: Job) -> bool:
    """Run one job. Rank 0 writes, the others take part; a reference job leaves nothing but its figures.

    Returns:
        Whether the ranks go on. They stop if a stored reference is off that later jobs rely on.
    """
    tracker = None
    if session.rank == 0 and job.run_dir:
        tracker = _tracker(session, job, job.run_dir)
    try:
        session.throttle.start_job(job.run.throttle, job.run.percentages)
        prepared = prepare(session, job)
        if tracker:
            plan = prepared.plan
            tracker.planned({"tokens": plan.tokens, "kv_tokens": plan.kv_tokens, "speeds": prepared.speeds})
        if job.role == "single":
            with short_collections():
                remember_single_device(prepared)
            return True
        with prepared.tools.memory.limited(), short_collections():
            measured = measure(prepared, job.role, tracker)
        references = prepared.tools.references
        if job.is_spot_check:
            return references.still_holds(measured.as_reference(), job.run.settings.calibration.tolerance)
        if job.run_dir:
            _finish_run(prepared, measured, job, tracker)
        else:
            references.remember(measured.as_reference())
    except BaseException as error:
        if tracker:
            tracker.fail(error)
        raise
    return True


def _finish_run(prepared: PreparedJob, measured: Measured, job: Job, tracker: Tracker | None) -> None:
    """Check the output, decode, and write the result of a run."""
    prepared = replace(prepared, plan=measured.plan)  # that the output is of
    result = run_result(
        prepared, measured, check_output(prepared, measured.output), measure_decoding(prepared)
    )
    result = with_checkpoint_check(prepared, result)
    if result.exact is not False:
        prepared.tools.references.remember(measured.as_reference())
    if tracker and job.run_dir:
        tracker.finish(result)
        _complete(prepared.session, job, job.run_dir)


def _tracker(session: Session, job: Job, run_dir: Path) -> Tracker:
    """Open the files and the wandb run of a run."""
    machine = session.ranks.machine
    nodes = machine.get("nodes")  # of several nodes the first one has rank 0
    first = an_object(nodes[0], "node") if isinstance(nodes, list) and nodes else machine
    facts = environment(first, session.ranks.command)
    if nodes:
        facts["nodes"] = nodes
    return Tracker(
        run_dir, job.run.settings, session.progress.warn, described(job.run.settings, job.key, facts)
    )


def _complete(session: Session, job: Job, run_dir: Path) -> None:
    """Let later sweeps find this run again, unless what its key stands for has changed."""
    if job.key is None:
        return
    run_fingerprint, warn = job.key.partition("-")[0], session.progress.warn
    if fingerprint(job.run.settings, content_of(job.run.settings, warn)) != run_fingerprint:
        warn(
            f"{run_dir.name}: ringexp's code, the prompt or the checkpoint changed while it ran, so no later "
            "sweep takes its results"
        )
        return
    CompletedRuns(job.run.settings.completed_dir, session.ranks.machine, warn).add(run_fingerprint, run_dir)
