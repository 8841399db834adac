"""What the launcher hands the ranks: one set of ranks and its list of jobs, as a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ringexp.config import Config, from_dict
from ringexp.errors import UserError


@dataclass(frozen=True)
class Job:
    """One config to run.

    role: `run` is tracked in run_dir; the references `single`, `homogeneous` and `even` are only remembered;
    a spot check compares a remembered one with how fast it is now.
    throttle: the resolved name.
    key: the run's name in the index of complete runs.
    references: what decides each reference that the run is measured against, or that the job measures.
    invocation: the call of ringexp that has to have measured those; None: any.
    """

    config: Config
    role: str
    throttle: str
    run_dir: Path | None = None
    key: str | None = None
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    invocation: str | None = None


@dataclass(frozen=True)
class RankSet:
    """Ranks that share device and model, and the jobs they do in order.

    throttle and transport are resolved names; device is `cpu` or `cuda`; machine is `machine_facts`.
    throttle, percentages: as the ranks begin; paced ranks take those of each job. drifting: percentages
    change in mid-run. invocation: names the call of ringexp that started the ranks.
    """

    device: str
    throttle: str
    transport: str
    percentages: list[float]
    num_devices: int
    machine: dict[str, Any]
    command: list[str]
    drifting: bool = False
    invocation: str = ""
    jobs: list[Job] = field(default_factory=list)

    @property
    def world_size(self) -> int:
        return len(self.percentages)

    @property
    def ranks_per_device(self) -> int:
        return -(-self.world_size // self.num_devices)

    def to_json(self) -> str:
        document = asdict(self)
        for job in document["jobs"]:
            job["run_dir"] = None if job["run_dir"] is None else str(job["run_dir"])
        try:
            return json.dumps(document, indent=2, allow_nan=False)
        except ValueError as error:
            raise UserError("a setting is NaN or infinite; every number has to be finite") from error

    @classmethod
    def from_json(cls, text: str) -> RankSet:
        document = json.loads(text)
        jobs = [
            replace(
                Job(**job), config=from_dict(job["config"]), run_dir=job["run_dir"] and Path(job["run_dir"])
            )
            for job in document.pop("jobs")
        ]
        return cls(**document, jobs=jobs)
