"""Prepare a job on this rank: speeds -> plan -> inputs, before anything is timed. All ranks do it in step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ringexp.calibration.source import TableSpeeds
from ringexp.choices import THROTTLES
from ringexp.config import Config
from ringexp.configure.prompts import has_prompt, prompts
from ringexp.configure.resolve import ResolvedRun
from ringexp.errors import UserError
from ringexp.hetero.drift import levels
from ringexp.kernels import Kernel
from ringexp.models.inputs import padded
from ringexp.models.workload import Workload
from ringexp.planning import EqualLinks, Plan, adaptive_planner, check_memory, plan_for
from ringexp.ring.context import RingContext
from ringexp.tracking.results import References
from ringexp.worker.caches import block_shape
from ringexp.worker.calibrate import software_versions
from ringexp.worker.calibration_needs import CalibrationNeeds
from ringexp.worker.cuda_graphs import CudaGraphs
from ringexp.worker.job_references import JobReferences
from ringexp.worker.memory import RankMemory, memory_need
from ringexp.worker.prompt_loop import PromptLoop, RingWork
from ringexp.worker.rank_set import Job
from ringexp.worker.session import Session
from ringexp.worker.speed_meter import SpeedMeter


@dataclass(frozen=True)
class JobTools:
    """The tools of one job on this rank, before its speeds and its plan are known.

    Attributes:
        workload: the model or attention module.
        kernel: what computes blocks.
        graphs: whether prompts are CUDA graphs.
        memory: what the ranks' memories hold.
        references: what the job is compared with.
    """

    workload: Workload
    kernel: Kernel
    graphs: CudaGraphs
    memory: RankMemory
    references: JobReferences


@dataclass(frozen=True)
class PreparedJob:
    """A job that is ready to run: speeds are known and the plan is made.

    Attributes:
        session: this rank.
        run: the settings of the run, with every `auto` decided.
        tools: what the job works with.
        source: the measured speeds that the plan rests on.
        speeds: the speed of each rank, TFLOP/s.
        drift_speeds: the same at each list of percentages that prompts run at.
        references: the stored references that the job is compared with.
        max_tokens: the most tokens that each rank's memory holds; None for no limit.
        plan: who holds what.
        links: the links between the ranks; None if they were not measured.
        x: the whole prompt.
    """

    session: Session
    run: ResolvedRun
    tools: JobTools
    source: TableSpeeds
    speeds: list[float]
    drift_speeds: dict[tuple[float, ...], list[float]]
    references: References
    max_tokens: list[int | None]
    plan: Plan
    links: EqualLinks | None
    x: torch.Tensor

    @property
    def settings(self) -> Config:
        """The settings as the user gave them."""
        return self.run.settings

    @property
    def workload(self) -> Workload:
        return self.tools.workload

    def ring(self, plan: Plan | None = None) -> RingContext:
        """Return this rank's end of the ring for a plan; for the job's own plan by default."""
        session, prefetch_hops = self.session, self.settings.transport.prefetch_hops
        plan, clock = plan or self.plan, session.throttle.clock(self.workload.shape.only_attention)
        return RingContext(plan, session.rank, session.transport, self.tools.kernel, clock, prefetch_hops)

    def prompt_loop(self) -> PromptLoop:
        """Return what runs the job's prompts, one after the other."""
        run, plan, planner = self.run, self.plan, None
        if run.partitioner.adapts:
            units = self.workload.shape.layers
            planner = adaptive_planner(run.plan_request, self.source, units, self.max_tokens, self.links)
            plan = planner.plan
        work = RingWork(self.workload, self.x, self.ring)
        return PromptLoop(self.session, run.settings.hetero, work, self.tools.graphs, plan, planner)

    @property
    def checker(self) -> int:
        """The rank that checks results alone: the ring's member with the largest percentage."""
        percentages = self.run.percentages
        return max(self.plan.members, key=lambda rank: (percentages[rank], -rank))


def prepare(session: Session, job: Job) -> PreparedJob:
    """Calibrate, plan and build the inputs of one job.

    Reference jobs skip cost calibration and the memory check.
    """
    run, is_run, settings = job.run, job.is_run, job.run.settings
    needs = calibration_needs(run, costs=is_run)
    tools = job_tools(session, job, longest=max(run.seq_len + settings.decode_tokens, *needs.lengths))
    workload, meter = tools.workload, speed_meter(session, run, tools)
    source = session.calibrator.speeds(needs, meter, tools.memory)
    references = tools.references.stored()
    if is_run:
        source = replace(source, alone_ms=_alone_ms(session, run, references, workload.shape.layers))
    max_tokens = tools.memory.max_tokens(run.seq_len)
    links = links_of(session, run, tools) if is_run else None
    plan = plan_for(run.plan_request, source, max_tokens, links)
    if is_run and (wrong := check_memory(plan, max_tokens)):
        if any(limit is not None for limit in run.memory_limits_gib):
            raise UserError(wrong)
        session.progress.warn(wrong)
    x = _inputs(session, run, workload)
    speeds = source.lut()
    drift_speeds = {tuple(run.percentages): speeds}
    if is_run and run.drift:
        percentages = levels(run.drift, run.percentages, settings.repeats)
        drift_speeds |= session.calibrator.drift_speeds(needs, meter, tools.memory, percentages)
    return PreparedJob(
        session=session,
        run=run,
        tools=tools,
        source=source,
        speeds=speeds,
        drift_speeds=drift_speeds,
        references=references,
        max_tokens=max_tokens,
        plan=plan,
        links=links,
        x=x,
    )


def job_tools(session: Session, job: Job, longest: int) -> JobTools:
    """Build or fetch what a job works with. longest: tokens that the workload has to be built for."""
    run, settings, ranks = job.run, job.run.settings, session.ranks
    references = JobReferences(
        session.communicator, session.progress, settings.references_dir, job, ranks.invocation
    )
    workload = session.workloads.get(settings.model, settings.seed, longest)
    shape = block_shape(workload, settings.model.batch_size, run.seq_len, ranks.world_size)
    kernel = session.kernels.get(settings.kernel.name, shape, references.store)
    need = memory_need(workload, session.transport, run.chunks, settings.decode_tokens > 0)
    memory = RankMemory(
        session.communicator, session.device, ranks.ranks_per_device, run.memory_limits_gib, need
    )
    return JobTools(workload, kernel, CudaGraphs(run.cuda_graph), memory, references)


def calibration_needs(run: ResolvedRun, costs: bool) -> CalibrationNeeds:
    """Return the speeds that a job reads. costs: the job predicts its time."""
    return CalibrationNeeds(
        settings=run.settings.calibration,
        speeds_file=run.settings.speeds_file,
        seq_len=run.seq_len,
        world_size=run.world_size,
        partitioner=run.settings.partitioner,
        costs=costs,
    )


def speed_meter(session: Session, run: ResolvedRun, tools: JobTools) -> SpeedMeter:
    """Return what measures a job's workload on this rank."""
    driver = session.ranks.machine.get("driver")
    return SpeedMeter(
        communicator=session.communicator,
        throttle=session.throttle,
        device=session.device,
        ranks_per_device=session.ranks.ranks_per_device,
        workload=tools.workload,
        kernel=tools.kernel,
        graphs=tools.graphs,
        announces=session.transport.announces,
        tile=run.tile,
        seed=run.settings.seed,
        versions=software_versions(driver if isinstance(driver, str) else None),
    )


def links_of(session: Session, run: ResolvedRun, tools: JobTools) -> EqualLinks | None:
    """Return what a hop of a shard costs; None where nothing may be measured."""
    if run.settings.calibration.mode == "table":
        return None
    return session.hop_costs.of_shards(tools.kernel, tools.workload.memory.kv_token)


def _inputs(session: Session, run: ResolvedRun, workload: Workload) -> torch.Tensor:
    """Return the whole prompt: the user's own text, or random tokens."""
    if has_prompt(run.settings):
        return padded(prompts(run.settings), session.device)
    return workload.inputs(run.seq_len, run.settings.seed)


def _alone_ms(session: Session, run: ResolvedRun, references: References, units: int) -> float | None:
    """Return the time of one unit of the workload on one full-speed device, if ranks at 100 % are such."""
    single_ms = references.single_ms
    if run.drift or single_ms is None or not has_whole_devices(session, run):
        return None
    return single_ms / units


def has_whole_devices(session: Session, run: ResolvedRun) -> bool:
    """Return whether a rank at 100 % is one full-speed device."""
    return session.ranks.ranks_per_device == 1 and not THROTTLES[run.throttle].measures_each_device
