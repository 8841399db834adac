"""The result of a run, from what was planned and measured."""

from __future__ import annotations

from statistics import median
from typing import TypedDict

from ringexp.planning import RankCost, predicted_ms
from ringexp.ring.timing import IterationTiming
from ringexp.tracking import metrics
from ringexp.tracking.accuracy import Accuracy
from ringexp.tracking.results import Adaptation, Decoding, Hop, RunResult
from ringexp.worker.measure import Measured, capacity_efficiency
from ringexp.worker.prepare import PreparedJob


def run_result(
    job: PreparedJob, measured: Measured, accuracy: Accuracy | None, decoding: Decoding | None
) -> RunResult:
    """Put together the figures of a run. All ranks call this together, with the latest plan in `job`."""
    run, session, references = job.run, job.session, job.references
    settled = measured.iterations if run.drift else measured.settled
    latencies_ms = [metrics.latency_ms(ranks) for ranks in settled]
    adaptation = metrics.adaptation(measured.prompts, measured.latencies_ms)
    costs, partitioner = _costs(job), run.partitioner
    return RunResult(
        **_latencies(job, measured, latencies_ms),
        **_merit(job, settled, adaptation),
        **_plan(job),
        **_throttle(job),
        **_errors(accuracy),
        latency_ms_predicted=_predicted_ms(job, costs),
        peak_memory_bytes=measured.peak_memory_bytes,
        error_checkpoint=None,  # see `with_checkpoint_check`
        kernel=job.tools.kernel.name,
        transport=session.transport.name,
        costs=costs,
        hop=Hop.of(job.links) if job.links else None,
        num_units=job.workload.shape.layers,
        decode=decoding,
        adaptation=adaptation if run.drift or partitioner.adapts else None,
        references=references,
        speed_model=job.source.describe_formula() if partitioner.needs_curve else None,
        missing_references=job.tools.references.missing(),
    )


class _Latencies(TypedDict):
    latency_ms_median: float
    latency_ms_spread: float
    latency_ms_iterations: list[float]
    settled_iterations: int
    time_to_first_token_ms: float | None
    latency_ms_back_to_back: float
    hop_latency_ms: float | None
    hop_gbps: float | None


def _latencies(job: PreparedJob, measured: Measured, settled_ms: list[float]) -> _Latencies:
    """Return the times of whole prompts and of hops. settled_ms: the latencies that count."""
    latency_ms, link = median(settled_ms), job.session.hop_costs.link
    return {
        "latency_ms_median": latency_ms,
        "latency_ms_spread": metrics.spread_ms(settled_ms),
        "latency_ms_iterations": measured.latencies_ms,
        "settled_iterations": len(settled_ms),
        "time_to_first_token_ms": latency_ms if job.workload.text_model else None,
        "latency_ms_back_to_back": measured.back_to_back_ms,
        "hop_latency_ms": link.latency_ms if link else None,
        "hop_gbps": link.gbps if link else None,
    }


class _Merit(TypedDict):
    slowdown: float | None
    efficiency: float
    speedup_over_even: float | None
    capacity_efficiency: float | None
    tflops: float
    busy_ms: list[float]
    linear_ms: list[float]
    attention_ms: list[float]
    wait_ms: list[float]
    comm_ms: list[float]
    idle_ms: list[float]


def _merit(job: PreparedJob, settled: list[list[IterationTiming]], adaptation: Adaptation) -> _Merit:
    """Return the figures of merit, and how each rank spent the time per prompt."""
    plan, references = job.plan, job.references
    latency_ms = median(metrics.latency_ms(ranks) for ranks in settled)
    medians = metrics.per_rank_medians(settled)
    flops = sum(job.workload.flops(plan, rank) for rank in range(plan.world_size))
    even_ms = latency_ms if job.run.partitioner.is_baseline else references.even_ms
    if job.run.drift:
        efficiency = adaptation.capacity_efficiency
    else:
        efficiency = capacity_efficiency(job, latency_ms, job.speeds)
    return {
        "slowdown": metrics.slowdown(latency_ms, references.homogeneous_ms),
        "efficiency": metrics.efficiency(medians["busy_ms"], latency_ms),
        "speedup_over_even": metrics.speedup_over_even(latency_ms, even_ms),
        "capacity_efficiency": efficiency,
        "tflops": metrics.tflops(flops, latency_ms),
        "busy_ms": medians["busy_ms"],
        "linear_ms": medians["linear_ms"],
        "attention_ms": medians["attention_ms"],
        "wait_ms": medians["wait_ms"],
        "comm_ms": medians["comm_ms"],
        "idle_ms": medians["idle_ms"],
    }


class _PlanFigures(TypedDict):
    tokens: list[int]
    kv_tokens: list[int]
    shares: list[float]
    speeds: list[float]
    plan: list[str]


def _plan(job: PreparedJob) -> _PlanFigures:
    """Return who holds what, and the speeds that the plan rests on."""
    plan = job.plan
    return {
        "tokens": plan.tokens,
        "kv_tokens": plan.kv_tokens,
        "shares": plan.shares,
        "speeds": job.speeds,
        "plan": [str(shard) for shard in plan.q_shards],
    }


class _ThrottleFigures(TypedDict):
    throttle: str
    throttle_emulated: bool
    throttle_achieved: list[float | None]
    sm_counts: list[int | None]
    cublas_sms: list[int | None]


def _throttle(job: PreparedJob) -> _ThrottleFigures:
    """Return how the ranks were slowed. All ranks call this together."""
    applied, gather = job.session.throttle.applied, job.session.communicator.gather
    return {
        "throttle": applied.name,
        "throttle_emulated": applied.emulated,
        "throttle_achieved": gather(applied.achieved),
        "sm_counts": gather(applied.sm_count),
        "cublas_sms": gather(applied.cublas_sms),
    }


class _Errors(TypedDict):
    error_max_abs: float | None
    error_single_max_abs: float | None
    error_token: float | None
    error_single_token: float | None
    exact: bool | None
    why_inexact: str | None


def _errors(accuracy: Accuracy | None) -> _Errors:
    """Return how far the output is from that of one process; all None if it was not checked."""
    return {
        "error_max_abs": accuracy.error_max_abs if accuracy else None,
        "error_single_max_abs": accuracy.error_single_max_abs if accuracy else None,
        "error_token": accuracy.error_token if accuracy else None,
        "error_single_token": accuracy.error_single_token if accuracy else None,
        "exact": accuracy.exact if accuracy else None,
        "why_inexact": accuracy.why_inexact if accuracy else None,
    }


def _costs(job: PreparedJob) -> list[RankCost]:
    """Return what the plan expects work to cost; nothing where queries and keys are split differently."""
    return list(job.source.costs(job.run.mask)) if job.plan.aligned else []


def _predicted_ms(job: PreparedJob, costs: list[RankCost]) -> float | None:
    """Return the predicted latency; None without costs, and for a run whose speeds change."""
    if not costs or job.run.drift:
        return None
    prefetch_hops = job.settings.transport.prefetch_hops
    return job.workload.shape.layers * predicted_ms(job.plan, costs, job.links, prefetch_hops)
