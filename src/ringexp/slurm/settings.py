"""The checks of conf/hydra/launcher/slurm.yaml, the settings of a cluster's jobs."""

from __future__ import annotations

from dataclasses import asdict

from ringexp.config import SlurmConfig
from ringexp.errors import UserError
from ringexp.stored import JsonObject

EXECUTORS = ("slurm", "local")


def validate(settings: SlurmConfig) -> None:
    """Raise UserError for settings that no cluster can fulfil."""
    if settings.executor not in EXECUTORS:
        raise UserError(f"hydra.launcher.executor={settings.executor}: choose one of {', '.join(EXECUTORS)}")
    for name in ("time_min", "nodes", "gpus_per_node", "cpus_per_rank"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"hydra.launcher.{name}={value} must be at least 1")
    if not 0 <= settings.end_signal_s < settings.time_min * 60:
        raise UserError(
            f"hydra.launcher.end_signal_s={settings.end_signal_s} must be less than the time limit, "
            f"hydra.launcher.time_min={settings.time_min} ({settings.time_min * 60} s)"
        )
    if settings.executor == "local" and settings.nodes > 1:
        raise UserError(f"hydra.launcher.nodes={settings.nodes}: the local executor has one node")


def job_identity(settings: SlurmConfig) -> JsonObject:
    """Return what decides which machine a job gets, as far as it is known before the job starts."""
    names = ("executor", "partition", "constraint", "nodes", "gpus_per_node", "cpus_per_rank", "sbatch")
    return {"slurm": {name: value for name, value in asdict(settings).items() if name in names}}
