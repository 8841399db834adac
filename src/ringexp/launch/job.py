"""One job on one rank: speeds -> plan -> ring -> check -> result. All ranks run this in step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch

from ringexp.calibration.source import TableSpeeds
from ringexp.config import Config
from ringexp.kernels import Kernel
from ringexp.launch.planning import plan_for
from ringexp.launch.session import Session
from ringexp.launch.spec import Job
from ringexp.models.workload import Workload, local_inputs
from ringexp.planning import Plan, make_plan
from ringexp.ring.prefill import RingContext
from ringexp.ring.timing import IterationTiming
from ringexp.ring.transport import LoopbackTransport
from ringexp.tracking import metrics
from ringexp.tracking.environment import environment
from ringexp.tracking.metrics import Accuracy, References, RunResult
from ringexp.tracking.references import even_facts, homogeneous_facts
from ringexp.tracking.tracker import Tracker


@torch.inference_mode()
def run_job(session: Session, job: Job) -> None:
    """Run one job. Rank 0 writes; the others return when it is done."""
    config = job.config
    tracker = Tracker(job.run_dir, config) if session.rank == 0 and job.run_dir else None
    try:
        result = _run(session, job, tracker)
    except BaseException as error:
        if tracker:
            tracker.fail(f"{type(error).__name__}: {error}")
        raise
    if tracker:
        tracker.finish(result)


def _run(session: Session, job: Job, tracker: Tracker | None) -> RunResult:
    config, rank = job.config, session.rank
    workload = session.workload(config)
    kernel = session.kernel(config, workload)
    source = session.speeds(config)
    plan = plan_for(config, source, session.device.type, workload.causal)
    speeds = source.lut()
    if tracker:
        tracker.planned({"tokens": plan.tokens, "kv_tokens": plan.kv_tokens, "speeds": speeds})
    x = workload.inputs(config.seq_len, config.seed)
    ring = RingContext(plan, rank, session.transport, kernel, session.clock, config.transport.prefetch_hops)
    measured = _measure(session, config, workload, x, ring, tracker, job.role)
    accuracy = _check(session, config, workload, x, plan, measured.output) if tracker_wanted(job) else None
    latency = median(metrics.latency_ms(ranks) for ranks in measured.iterations)
    store, machine = session.references(config), session.ranks.machine
    if job.role == "homogeneous":
        single = _measure_single(session, config, workload, x, kernel)
        if rank == 0:
            remembered = {"latency_ms_median": latency, "single_ms": single, "single_speed_tflops": speeds[0]}
            store.put("homogeneous", homogeneous_facts(config, machine), remembered)
    if config.partitioner.name == "even" and rank == 0:
        store.put("even", even_facts(config, machine), {"latency_ms_median": latency})
    references = store.collect(config, machine)
    return _result(session, config, workload, plan, speeds, source, measured, accuracy, references, kernel)


def tracker_wanted(job: Job) -> bool:
    """Whether the job is a run of its own, checked and tracked, or only a reference for others."""
    return job.run_dir is not None


@dataclass(frozen=True)
class _Measured:
    """Timings of all ranks, an entry an iteration; peak memory a rank; this rank's latest output."""

    iterations: list[list[IterationTiming]]
    peak_memory_bytes: list[int]
    output: torch.Tensor


def _measure(
    session: Session,
    config: Config,
    workload: Workload,
    x: torch.Tensor,
    ring: RingContext,
    tracker: Tracker | None,
    role: str,
) -> _Measured:
    """Warm-up, then timed iterations, each from a common start; rank 0 logs each as it ends."""
    local = local_inputs(x, ring.plan, ring.rank)
    what = f"{config.partitioner.name}" if role == "run" else f"reference ({role})"
    session.progress.stage(f"{what}: {config.seq_len} tokens", config.warmup + config.repeats)
    session.reset_peak_memory()
    iterations: list[list[IterationTiming]] = []
    output = torch.empty(0)
    for index in range(-config.warmup, config.repeats):
        session.barrier()
        session.transport.barrier()
        session.clock.start()
        output = workload.forward(local, ring)
        session.clock.stop()
        timing = session.clock.read().with_transfers(session.transport.take_transfers(), ring.rank)
        ranks = session.gather(timing)
        if index >= 0:
            iterations.append(ranks)
            if tracker:
                tracker.iteration(index, ranks)
        session.progress.advance()
    return _Measured(iterations, session.gather(session.peak_memory_bytes()), output)


def _measure_single(
    session: Session, config: Config, workload: Workload, x: torch.Tensor, kernel: Kernel
) -> float | None:
    """Median latency of the whole workload on rank 0's device alone, ms; None if it does not fit there."""
    session.progress.stage(f"reference (one device): {config.seq_len} tokens", config.warmup + config.repeats)
    latency: float | None = None
    if session.rank == 0:
        plan = make_plan(config.seq_len, [config.seq_len], causal=workload.causal)
        ring = RingContext(plan, 0, LoopbackTransport(), kernel, session.clock)
        local = local_inputs(x, plan, 0)
        times = []
        try:
            for _ in range(config.warmup + config.repeats):
                session.clock.start()
                workload.forward(local, ring)
                session.clock.stop()
                times.append(session.clock.read().latency_ms)
                session.progress.advance()
            latency = median(times[config.warmup :])
        except torch.OutOfMemoryError:
            session.progress.warn(f"{config.seq_len} tokens do not fit one device: no capacity efficiency")
    session.barrier()
    return latency


def _check(
    session: Session, config: Config, workload: Workload, x: torch.Tensor, plan: Plan, output: torch.Tensor
) -> Accuracy | None:
    """Compare the ranks' outputs with a single process, on the rank with the largest percentage."""
    if not config.check:
        return None
    session.progress.stage(f"checking against one process: {config.seq_len} tokens")
    percentages = config.hetero.percentages
    checker = max(range(plan.world_size), key=lambda rank: (percentages[rank], -rank))
    shapes = session.gather(tuple(output.shape))
    accuracy: Accuracy | None = None
    if session.rank == checker:
        outputs = {
            rank: output if rank == checker else output.new_empty(shapes[rank])
            for rank in range(plan.world_size)
        }
        session.transport.exchange({}, {rank: t for rank, t in outputs.items() if rank != checker})
        accuracy = _accuracy(session, config, workload, x, plan, outputs)
    else:
        session.transport.exchange({checker: output}, {})
    return session.gather(accuracy)[checker]


def _accuracy(
    session: Session,
    config: Config,
    workload: Workload,
    x: torch.Tensor,
    plan: Plan,
    outputs: dict[int, torch.Tensor],
) -> Accuracy:
    key = (config.model, config.seq_len, config.seed)
    if session.expected is None or session.expected[0] != key:
        session.expected = None
        dtypes = {torch.float32, workload.dtype}
        session.expected = (key, {dtype: workload.reference(x, dtype) for dtype in dtypes})
    exact, single = session.expected[1][torch.float32], session.expected[1][workload.dtype]
    parts = [
        (part, out.float())
        for rank, out in outputs.items()
        if (part := workload.part_of(exact, plan, rank)) is not None
    ]
    return Accuracy(
        error_max_abs=max((out - part).abs().max().item() for part, out in parts),
        error_single_max_abs=(single.float() - exact).abs().max().item(),
        reference_spread=(exact.max() - exact.min()).item(),
    )


def _result(
    session: Session,
    config: Config,
    workload: Workload,
    plan: Plan,
    speeds: Sequence[float],
    source: TableSpeeds,
    measured: _Measured,
    accuracy: Accuracy | None,
    references: References,
    kernel: Kernel,
) -> RunResult:
    latencies = [metrics.latency_ms(ranks) for ranks in measured.iterations]
    latency = median(latencies)
    medians = metrics.per_rank_medians(measured.iterations)
    flops = sum(workload.flops(plan, rank) for rank in range(plan.world_size))
    even_ms = latency if config.partitioner.name == "even" else references.even_ms
    return RunResult(
        latency_ms_median=latency,
        latency_ms_spread=metrics.spread_ms(latencies),
        latency_ms_iterations=latencies,
        tokens=plan.tokens,
        kv_tokens=plan.kv_tokens,
        shares=plan.shares,
        speeds=list(speeds),
        throttle=session.throttle.name,
        throttle_emulated=session.throttle.emulated,
        sm_counts=session.gather(session.throttle.sm_count),
        slowdown=metrics.slowdown(latency, references.homogeneous_ms),
        efficiency=metrics.efficiency(medians["busy_ms"], latency),
        speedup_over_even=metrics.speedup_over_even(latency, even_ms),
        capacity_efficiency=metrics.capacity_efficiency(
            latency, speeds, references.single_ms, references.single_speed_tflops
        ),
        **medians,
        tflops=metrics.tflops(flops, latency),
        peak_memory_bytes=measured.peak_memory_bytes,
        error_max_abs=accuracy.error_max_abs if accuracy else None,
        error_single_max_abs=accuracy.error_single_max_abs if accuracy else None,
        exact=accuracy.exact if accuracy else None,
        kernel=kernel.name,
        transport=session.transport.name,
        plan=[str(shard) for shard in plan.q_shards],
        references=asdict(references),
        speed_model=source.describe_formula() if config.partitioner.name == "formula" else {},
        environment=environment(session.device.type, session.ranks.command),
    )
