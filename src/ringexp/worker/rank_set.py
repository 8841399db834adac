"""The launcher's orders to the ranks: one set of ranks and its list of jobs, as a JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ringexp.configure.resolve import ResolvedRun
from ringexp.errors import UserError
from ringexp.stored import JsonObject

SPOT_CHECK = "spot check of "
"""The beginning of the role of a job that runs a stored reference again. The kind of reference follows."""


@dataclass(frozen=True)
class Job:
    """One run for the ranks to do.

    Attributes:
        run: the settings, with every `auto` decided.
        role: `run` is tracked in run_dir; the references `single`, `homogeneous` and `even` are remembered; a
            spot check compares a remembered reference with how fast it is now.
        run_dir: the folder of a tracked run.
        key: the run's name in the index of complete runs.
        references: what decides each reference that the run is measured against, or that the job measures.
        invocation: the call of ringexp that has to have measured those references; None: any call.
    """

    run: ResolvedRun
    role: str
    run_dir: Path | None = None
    key: str | None = None
    references: dict[str, JsonObject] = field(default_factory=dict)
    invocation: str | None = None

    @property
    def is_run(self) -> bool:
        """Tell whether this is a run that is tracked, not a reference or a check of one."""
        return self.role == "run"

    @property
    def is_spot_check(self) -> bool:
        """Tell whether the job only compares a stored reference with how fast it is now."""
        return self.role.startswith(SPOT_CHECK)

    def to_dict(self) -> dict[str, object]:
        """Return the job as plain values for JSON."""
        plain_fields = {item.name: getattr(self, item.name) for item in fields(self)}
        return plain_fields | {"run": self.run.to_dict(), "run_dir": self.run_dir and str(self.run_dir)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        """Return the job that `to_dict` was called on."""
        run_dir = Path(data["run_dir"]) if data["run_dir"] else None
        return cls(**(data | {"run": ResolvedRun.from_dict(data["run"]), "run_dir": run_dir}))


@dataclass(frozen=True)
class RankSet:
    """Ranks that share device and model, and the jobs they do in order.

    Attributes:
        device: cpu or cuda.
        throttle: the throttle that the ranks start with, never auto; ranks that are paced change it per job.
        transport: the name of the transport, never auto.
        percentages: the profile that the ranks start with; ranks that are paced change it per job.
        num_devices: the number of GPUs, or on CPU of machines.
        machine: what decides speed, as `machine_facts`.
        command: the user's command, for records.
        drifting: percentages change in mid-run.
        invocation: the call of ringexp that started the ranks.
        jobs: the jobs, in order.
    """

    device: str
    throttle: str
    transport: str
    percentages: list[float]
    num_devices: int
    machine: JsonObject
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
        document = {item.name: getattr(self, item.name) for item in fields(self)}
        document["jobs"] = [job.to_dict() for job in self.jobs]
        try:
            return json.dumps(document, indent=2, allow_nan=False)
        except ValueError as error:
            raise UserError("a setting is NaN or infinite; every number has to be finite") from error

    @classmethod
    def from_json(cls, text: str) -> RankSet:
        document = json.loads(text)
        jobs = [Job.from_dict(job) for job in document.pop("jobs")]
        return cls(**document, jobs=jobs)
