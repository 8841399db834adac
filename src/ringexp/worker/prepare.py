"""What a job runs on a rank: speeds -> plan -> inputs, before anything is timed. All ranks do it in step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ringexp.calibration.source import TableSpeeds
from ringexp.config import Config
from ringexp.errors import UserError
from ringexp.kernels import Kernel
from ringexp.models.inputs import padded
from ringexp.models.prompt import has_prompt, prompts
from ringexp.models.workload import Workload
from ringexp.planning import HopCost, Plan, check_memory
from ringexp.ring.loop import RingContext
from ringexp.worker.make_plan import adaptive_planner, plan_for
from ringexp.worker.prompt_loop import PromptLoop
from ringexp.worker.session import Session


@dataclass(frozen=True)
class PreparedJob:
    """What a job runs, once speeds are known and the plan is made.

    drift_speeds: speeds at each of the percentages that prompts run at. room: the most tokens a rank. x: the
    whole prompt.
    """

    session: Session
    config: Config
    workload: Workload
    kernel: Kernel
    source: TableSpeeds
    speeds: list[float]
    drift_speeds: dict[tuple[float, ...], list[float]]
    room: list[int | None]
    plan: Plan
    hop: HopCost | None
    x: torch.Tensor

    def ring(self, plan: Plan | None = None) -> RingContext:
        """For a plan, the setting's own unless given."""
        session, prefetch_hops = self.session, self.config.transport.prefetch_hops
        plan, clock = plan or self.plan, session.clock(self.workload)
        return RingContext(plan, session.rank, session.transport, self.kernel, clock, prefetch_hops)

    def course(self) -> PromptLoop:
        session, config, plan, planner = self.session, self.config, self.plan, None
        if config.partitioner.name == "adaptive":
            causal, units = self.workload.shape.causal, self.workload.shape.layers
            device = session.device.type
            planner = adaptive_planner(config, self.source, device, causal, units, self.room, self.hop)
            plan = planner.plan
        return PromptLoop(session, config, self.workload, self.x, self.ring, plan, planner)

    @property
    def checker(self) -> int:
        """The rank that checks results alone: the one with the largest percentage."""
        percentages = self.config.hetero.percentages
        return max(self.plan.members, key=lambda rank: (percentages[rank], -rank))


def prepare(session: Session, config: Config, is_run: bool) -> PreparedJob:
    """What a reference needs is less: no costs, and no check of what it takes."""
    workload = session.workload(config)
    kernel = session.kernel(config, workload)
    source = session.calibrator.speeds(config, costs=is_run)
    if is_run:
        source = replace(source, alone_ms=_alone_ms(session, config, workload))
    room = session.room(config, workload, config.seq_len)
    hop = session.calibrator.hop_cost(config, workload) if is_run else None
    plan = plan_for(config, source, session.device.type, workload.shape.causal, room, hop)
    if is_run and (wrong := check_memory(plan, room)):
        if config.memory_limit_gib is not None:
            raise UserError(wrong)
        session.progress.warn(wrong)
    if has_prompt(config):
        x = padded(prompts(config), session.device)
    else:
        x = workload.inputs(config.seq_len, config.seed)
    speeds = source.lut()
    drifting = session.calibrator.drift_speeds(config) if is_run and config.hetero.drift else {}
    drift_speeds = {tuple(config.hetero.percentages): speeds} | drifting
    return PreparedJob(session, config, workload, kernel, source, speeds, drift_speeds, room, plan, hop, x)


def _alone_ms(session: Session, config: Config, workload: Workload) -> float | None:
    """What a unit of the workload took one full-speed device, where ranks at 100 % are such devices."""
    if config.hetero.drift or not are_devices(session, config):
        return None
    single_ms = session.references().single_ms
    return None if single_ms is None else single_ms / workload.shape.layers


def are_devices(session: Session, config: Config) -> bool:
    """Whether a rank at 100 % is one full-speed device."""
    return session.ranks.ranks_per_device == 1 and not config.hetero.is_measured
