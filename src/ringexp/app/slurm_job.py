"""Carry out all runs of a SLURM job, on the first of its nodes, as a local sweep would.

The runs' folders say everything afterwards, so nobody has to wait for the job.
"""

from __future__ import annotations

import os
import signal
import sys

from ringexp.app.execute import execute
from ringexp.app.site import ExecutionSite
from ringexp.interrupts import raise_on
from ringexp.report.console import Console
from ringexp.slurm.job import JobFile, done_before
from ringexp.tracking.files import mark_ended


def carry_out(file: JobFile) -> None:
    """Carry out all runs of a job; each run's folder says what it came to.

    An interrupt leaves no result of the job, which SLURM may have requeued and may start again.
    """
    # submitit would ignore one of the signals, and requeue the job at the other.
    raise_on({signum: f"SLURM sent {signum.name}" for signum in (signal.SIGTERM, signal.SIGUSR2)})
    try:
        runs = [run for run in file.runs if not done_before(*run)]
        outcomes = execute(runs, Console(), file.resume, _site(file)) if runs else []
        for (_, run_dir), outcome in zip(runs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                mark_ended(run_dir, "failed", str(outcome))
    except KeyboardInterrupt as interrupt:
        sys.exit(f"interrupted: {interrupt}")
    except Exception as error:
        for _, run_dir in file.runs:
            mark_ended(run_dir, "failed", str(error))
        raise


def _site(file: JobFile) -> ExecutionSite:
    """Return the nodes of the job; several nodes are asked what they have."""
    job = file.job
    if job is None:
        return ExecutionSite(command=file.command)
    if job.num_nodes == 1:
        return ExecutionSite(command=file.command, run_ranks=job.run_ranks)
    label = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', 0)}"
    nodes = job.survey(file.runs[0][1] / "nodes" / label)
    return ExecutionSite(
        num_gpus=sum(node["gpus"] for node in nodes),
        num_nodes=job.num_nodes,
        run_ranks=job.run_ranks,
        command=file.command,
        nodes={"cpu": [node["cpu"] for node in nodes], "cuda": [node["cuda"] for node in nodes]},
    )
