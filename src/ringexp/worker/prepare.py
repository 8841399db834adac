"""What a job runs on a rank: speeds -> plan -> inputs, before anything is timed. All ranks do it in step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ringexp.calibration.source import TableSpeeds
from ringexp.choices import PARTITIONERS, measures_each_device
from ringexp.config import DEFAULT_TILE, Config
from ringexp.configure.prompts import has_prompt, prompts
from ringexp.errors import UserError
from ringexp.hetero.drift import levels
from ringexp.kernels import Kernel
from ringexp.models.inputs import padded
from ringexp.models.registry import model_of
from ringexp.models.workload import Workload
from ringexp.planning import EqualLinks, Plan, PlanRequest, adaptive_planner, check_memory, plan_for
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
    """What one job works with on a rank, before its speeds and its plan are known.

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
    """What a job runs, once speeds are known and the plan is made.

    Attributes:
        session: this rank.
        config: the settings of the run.
        tools: what the job works with.
        source: the measured speeds that the plan rests on.
        speeds: the speed of each rank, TFLOP/s.
        drift_speeds: the same at each list of percentages that prompts run at.
        references: the stored references that the job is compared with.
        max_tokens: the most tokens that each rank's memory holds; None for no limit.
        request: what the plan was asked for.
        plan: who holds what.
        links: the links between the ranks; None if they were not measured.
        x: the whole prompt.
    """

    session: Session
    config: Config
    tools: JobTools
    source: TableSpeeds
    speeds: list[float]
    drift_speeds: dict[tuple[float, ...], list[float]]
    references: References
    max_tokens: list[int | None]
    request: PlanRequest
    plan: Plan
    links: EqualLinks | None
    x: torch.Tensor

    @property
    def workload(self) -> Workload:
        return self.tools.workload

    def ring(self, plan: Plan | None = None) -> RingContext:
        """Return this rank's end of the ring for a plan; for the job's own plan by default."""
        session, prefetch_hops = self.session, self.config.transport.prefetch_hops
        plan, clock = plan or self.plan, session.throttle.clock(self.workload.shape.only_attention)
        return RingContext(plan, session.rank, session.transport, self.tools.kernel, clock, prefetch_hops)

    def prompt_loop(self) -> PromptLoop:
        """Return what runs the job's prompts, one after the other."""
        config, plan, planner, request = self.config, self.plan, None, self.request
        if PARTITIONERS[request.partitioner].adapts:
            units = self.workload.shape.layers
            planner = adaptive_planner(request, self.source, units, self.max_tokens, self.links)
            plan = planner.plan
        work = RingWork(self.workload, self.x, self.ring)
        return PromptLoop(self.session, config.hetero, work, self.tools.graphs, plan, planner)

    @property
    def checker(self) -> int:
        """The rank that checks results alone: the ring's member with the largest percentage."""
        percentages = self.config.hetero.percentages
        return max(self.plan.members, key=lambda rank: (percentages[rank], -rank))


def prepare(session: Session, job: Job) -> PreparedJob:
    """Calibrate, plan and build the inputs of one job.

    Reference jobs skip cost calibration and the memory check.
    """
    config, is_run = job.config, job.role == "run"
    needs = calibration_needs(config, costs=is_run)
    tools = job_tools(session, job, longest=max(config.seq_len + config.decode_tokens, *needs.lengths))
    workload, meter = tools.workload, speed_meter(session, config, tools)
    source = session.calibrator.speeds(needs, meter, tools.memory)
    references = tools.references.stored()
    if is_run:
        source = replace(source, alone_ms=_alone_ms(session, config, references, workload.shape.layers))
    max_tokens = tools.memory.max_tokens(config.seq_len)
    links = links_of(session, config, tools) if is_run else None
    plan = plan_for(job.run.plan_request, source, max_tokens, links)
    if is_run and (wrong := check_memory(plan, max_tokens)):
        if config.memory_limit_gib is not None:
            raise UserError(wrong)
        session.progress.warn(wrong)
    x = _inputs(session, config, workload)
    speeds = source.lut()
    drift_speeds = {tuple(config.hetero.percentages): speeds}
    if is_run and config.hetero.drift:
        percentages = levels(config.hetero.drift, config.hetero.percentages, config.repeats)
        drift_speeds |= session.calibrator.drift_speeds(needs, meter, tools.memory, percentages)
    return PreparedJob(
        session=session,
        config=config,
        tools=tools,
        source=source,
        speeds=speeds,
        drift_speeds=drift_speeds,
        references=references,
        max_tokens=max_tokens,
        request=job.run.plan_request,
        plan=plan,
        links=links,
        x=x,
    )


def job_tools(session: Session, job: Job, longest: int) -> JobTools:
    """Build or fetch what a job works with. longest: tokens that the workload has to be built for."""
    config, ranks = job.config, session.ranks
    references = JobReferences(
        session.communicator, session.progress, config.references_dir, job, ranks.invocation
    )
    workload = session.workloads.get(config.model, config.seed, longest)
    shape = block_shape(workload, config.model.batch_size, config.seq_len, ranks.world_size)
    kernel = session.kernels.get(config.kernel.name, shape, references.store)
    chunks = config.model.num_chunks(config.seq_len)
    need = memory_need(workload, session.transport, chunks, config.decode_tokens > 0)
    memory = RankMemory(
        session.communicator, session.device, ranks.ranks_per_device, config.memory_limit_gib, need
    )
    return JobTools(workload, kernel, _cuda_graphs(session, config), memory, references)


def _cuda_graphs(session: Session, config: Config) -> CudaGraphs:
    """Decide whether prompts are CUDA graphs: by the setting, else for attention modules only."""
    wanted = not model_of(config.model).generates_text if config.cuda_graph is None else config.cuda_graph
    return CudaGraphs(wanted and session.device.type == "cuda")


def calibration_needs(config: Config, costs: bool) -> CalibrationNeeds:
    """Return the speeds that a job reads. costs: the job predicts its time."""
    return CalibrationNeeds(
        settings=config.calibration,
        speeds_file=config.speeds_file,
        seq_len=config.seq_len,
        world_size=config.world_size,
        partitioner=config.partitioner,
        costs=costs,
    )


def speed_meter(session: Session, config: Config, tools: JobTools) -> SpeedMeter:
    """Return what measures a job's workload on this rank."""
    return SpeedMeter(
        communicator=session.communicator,
        throttle=session.throttle,
        device=session.device,
        ranks_per_device=session.ranks.ranks_per_device,
        workload=tools.workload,
        kernel=tools.kernel,
        graphs=tools.graphs,
        announces=session.transport.announces,
        tile=config.tile or DEFAULT_TILE[session.device.type],
        seed=config.seed,
        versions=software_versions(session.ranks.machine.get("driver")),
    )


def links_of(session: Session, config: Config, tools: JobTools) -> EqualLinks | None:
    """Return what a hop of a shard costs; None where nothing may be measured."""
    if config.calibration.mode == "table":
        return None
    return session.hop_costs.of_shards(tools.kernel, tools.workload.memory.kv_token)


def _inputs(session: Session, config: Config, workload: Workload) -> torch.Tensor:
    """Return the whole prompt: the config's own text, or random tokens."""
    if has_prompt(config):
        return padded(prompts(config), session.device)
    return workload.inputs(config.seq_len, config.seed)


def _alone_ms(session: Session, config: Config, references: References, units: int) -> float | None:
    """Return the time of one unit of the workload on one full-speed device, if ranks at 100 % are such."""
    single_ms = references.single_ms
    if config.hetero.drift or single_ms is None or not has_whole_devices(session, config):
        return None
    return single_ms / units


def has_whole_devices(session: Session, config: Config) -> bool:
    """Return whether a rank at 100 % is one full-speed device."""
    return session.ranks.ranks_per_device == 1 and not measures_each_device(config.hetero.throttle)
