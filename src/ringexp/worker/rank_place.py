"""A rank's place among the others, as its environment says it."""

from __future__ import annotations

import os
from dataclasses import dataclass

SECRET_ENV = "RINGEXP_SECRET"
"""The variable with the run's secret, which only its ranks know."""


@dataclass(frozen=True)
class RankPlace:
    """The number of this rank, and what else the launcher decides for it. torch reads the same variables.

    Attributes:
        rank: the rank's number (RANK).
        world_size: the number of ranks (WORLD_SIZE).
        local_rank: the number of the rank's GPU on its machine; on CPU its number there (LOCAL_RANK).
        cpu_threads: the threads that the rank computes with on a CPU (RINGEXP_CPU_THREADS).
        launcher_pid: the process that the rank dies with; None for none (RINGEXP_LAUNCHER_PID).
    """

    rank: int
    world_size: int
    local_rank: int
    cpu_threads: int
    launcher_pid: int | None = None

    def to_environment(self) -> dict[str, str]:
        """Return the environment variables for the rank's process."""
        environment = {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "RINGEXP_CPU_THREADS": str(self.cpu_threads),
            "PYTHONUNBUFFERED": "1",
        }
        if self.launcher_pid is not None:
            environment["RINGEXP_LAUNCHER_PID"] = str(self.launcher_pid)
        return environment

    @classmethod
    def from_environment(cls) -> RankPlace:
        """Return this process's place."""
        launcher = os.environ.get("RINGEXP_LAUNCHER_PID")
        return cls(
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            cpu_threads=int(os.environ["RINGEXP_CPU_THREADS"]),
            launcher_pid=int(launcher) if launcher else None,
        )
