"""What the launcher hands the ranks: one set of ranks and its list of jobs, as a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ringexp.config import Config, from_dict


@dataclass(frozen=True)
class Job:
    """One config to run.

    role: `run` is tracked in run_dir; the references `single`, `homogeneous` and `even` are only remembered.
    throttle: the resolved name.
    """

    config: Config
    role: str
    throttle: str
    run_dir: Path | None = None


@dataclass(frozen=True)
class RankSet:
    """Ranks that share device and model, and the jobs they do in order.

    throttle and transport are resolved names; device is `cpu` or `cuda`; machine is `machine_facts`.
    throttle, percentages: as the ranks begin; paced ranks take those of each job. drifting: percentages
    change in mid-run.
    """

    device: str
    throttle: str
    transport: str
    percentages: list[float]
    num_devices: int
    machine: dict[str, Any]
    command: list[str]
    drifting: bool = False
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
        return json.dumps(document, indent=2)

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
