"""What is asked of the cluster: conf/hydra/launcher/slurm.yaml is checked against this."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ringexp.errors import UserError

EXECUTORS = ("slurm", "local")


@dataclass
class SlurmConfig:
    """One job's share of the cluster. Ranks are spread over `nodes` in rank order."""

    _target_: str = "hydra_plugins.ringexp_launcher.slurm.SlurmLauncher"
    executor: str = "slurm"  # local: submitit's own executor, here, one job after the other
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_min: int = 60
    nodes: int = 1
    gpus_per_node: int | None = None
    cpus_per_rank: int | None = None  # null: SLURM's default; ranks of a node share its cores
    mem_gb_per_node: float | None = None
    exclusive: bool = False  # nothing else on the nodes while measuring
    end_signal_s: int = 120  # this long before the time limit ranks save what they measured and end
    setup: list[str] = field(default_factory=list)  # shell lines before the ranks, e.g. module load cuda
    sbatch: dict[str, Any] = field(default_factory=dict)  # any other flag: {reservation: name, requeue: true}
    srun: list[str] = field(default_factory=list)  # any other argument of srun

    def validate(self) -> None:
        """Raises UserError for what no cluster could do."""
        if self.executor not in EXECUTORS:
            raise UserError(f"hydra.launcher.executor={self.executor}: choose one of {', '.join(EXECUTORS)}")
        for name in ("time_min", "nodes", "gpus_per_node", "cpus_per_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"hydra.launcher.{name}={value} must be at least 1")
        if not 0 <= self.end_signal_s < self.time_min * 60:
            raise UserError(
                f"hydra.launcher.end_signal_s={self.end_signal_s} must be less than the time limit, "
                f"hydra.launcher.time_min={self.time_min} ({self.time_min * 60} s)"
            )
        if self.executor == "local" and self.nodes > 1:
            raise UserError(f"hydra.launcher.nodes={self.nodes}: the local executor has one node")

    def place(self) -> dict[str, Any]:
        """What decides which machine a job gets, as far as it is known before the job has started."""
        names = ("executor", "partition", "constraint", "nodes", "gpus_per_node", "cpus_per_rank", "sbatch")
        return {"slurm": {name: value for name, value in asdict(self).items() if name in names}}
