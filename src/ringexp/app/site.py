"""Describe the machines on which ranks run, and the launcher that starts ranks there."""

from __future__ import annotations

from dataclasses import dataclass, field

from ringexp.config import Config
from ringexp.configure.preflight import Surroundings, check_before_start
from ringexp.configure.resolve import ResolvedRun, resolve
from ringexp.launch.local import run_ranks
from ringexp.launch.supervision import RunRanks
from ringexp.machine import gpu_count
from ringexp.stored import JsonObject, JsonValue
from ringexp.tracking.environment import command_line, machine_facts


@dataclass(frozen=True)
class ExecutionSite:
    """The place where ranks run; this machine by default.

    Attributes:
        num_gpus: GPUs of all nodes together.
        num_nodes: the number of machines.
        run_ranks: the launcher of one set of ranks.
        command: the user's command, for records.
        nodes: the machine facts of each node by device type, if there are several nodes.
    """

    num_gpus: int = field(default_factory=lambda: gpu_count())
    num_nodes: int = 1
    run_ranks: RunRanks = run_ranks
    command: list[str] = field(default_factory=command_line)
    nodes: dict[str, list[JsonObject]] = field(default_factory=dict)

    def machine(self, device: str) -> JsonObject:
        """Return what decides speed there, as `machine_facts`."""
        if self.num_nodes == 1:
            return machine_facts(device)
        nodes: list[JsonValue] = [*self.nodes[device]]
        return {"device": device, "nodes": nodes}

    def resolve(self, config: Config) -> ResolvedRun:
        """Decide what a run's settings leave open. Raises UserError for what cannot work here."""
        return resolve(config, self.num_gpus, self.num_nodes)

    def check(self, run: ResolvedRun) -> None:
        """Raise UserError for what is known to fail before any process starts.

        A plan without ranks may be for other hardware than this machine's.
        """
        config = run.settings
        here = not config.dry_run or config.device == "cpu"
        gpus = self.num_gpus if here or self.num_gpus else None
        transport = config.transport.name if config.dry_run else run.transport
        check_before_start(config, transport, Surroundings(run.device, gpus, self.num_nodes, here))
