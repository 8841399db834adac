"""What is handed to a SLURM job, and whether an earlier start of the job has done a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ringexp.config import Config
from ringexp.slurm.step import SlurmJob
from ringexp.tracking.completed import fingerprint
from ringexp.tracking.content import content_of
from ringexp.tracking.files import read_record


@dataclass(frozen=True)
class JobFile:
    """The content of a job.

    Attributes:
        runs: settings and folders of the runs to do.
        resume: whether results of equal runs may be taken.
        command: the user's command, for records.
        job: the job's nodes and how to use them; None for submitit's local executor.
    """

    runs: list[tuple[Config, Path]]
    resume: bool
    command: list[str]
    job: SlurmJob | None


def done_before(config: Config, run_dir: Path) -> bool:
    """Tell whether this job completed the run before SLURM requeued the job.

    The job may have run on another node then; results from there are as good.
    """
    if not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return False
    record = read_record(run_dir)
    if record is None or not record.is_complete:
        return False
    return (record.key or "").startswith(f"{fingerprint(config, content_of(config))}-")
