"""One job on one rank: setting -> ring -> check -> result. All ranks run this in step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import ceil, prod
from pathlib import Path
from statistics import median

import torch

from ringexp.calibration.staleness import is_off
from ringexp.hetero.drift import drift_label
from ringexp.models.inputs import local_inputs, unpadded
from ringexp.models.prompt import has_prompt, starts_of
from ringexp.planning import Plan, RankCost, longest_context, make_plan
from ringexp.ring.loop import RingContext
from ringexp.ring.timing import IterationTiming
from ringexp.ring.transport import LoopbackTransport
from ringexp.tracking import metrics
from ringexp.tracking.completed import CompletedRuns, fingerprint
from ringexp.tracking.content import content_of
from ringexp.tracking.environment import environment
from ringexp.tracking.metrics import Accuracy, Decoding, Prompt, References, RunResult
from ringexp.tracking.references import ReferenceStore
from ringexp.tracking.schema import described
from ringexp.tracking.tracker import Tracker
from ringexp.worker.accuracy import accuracy_of
from ringexp.worker.checkpoint import with_checkpoint_check
from ringexp.worker.decode import (
    continuations,
    decode,
    decode_together,
    decoding_figures,
    text_model_of,
    tokens_agreeing,
)
from ringexp.worker.prepare import PreparedJob, are_devices, prepare
from ringexp.worker.rank_set import Job
from ringexp.worker.reference_jobs import SPOT
from ringexp.worker.session import Session

WARM_MS = 300.0
"""A GPU that meets its power limit shows it by then."""
MOST_WARM = 50


@torch.inference_mode()
def run_job(session: Session, job: Job) -> bool:
    """Run one job. Rank 0 writes, the others take part; a reference job leaves nothing but its figures.

    Returns whether the ranks are to go on; they are not if a stored reference is off, which the jobs after a
    spot check rely on.
    """
    tracker = None
    if session.rank == 0 and job.run_dir:
        tracker = _tracker(session, job, job.run_dir)
    try:
        session.start_job(job)
        setting = prepare(session, job.config, is_run=job.role == "run")
        if tracker:
            plan = setting.plan
            tracker.planned({"tokens": plan.tokens, "kv_tokens": plan.kv_tokens, "speeds": setting.speeds})
        if job.role == "single":
            with short_collections():
                _remember_single(setting, job)
            return True
        with session.limited_memory(job.config), short_collections():
            measured = _measure(setting, job.role, tracker)
        if job.role.startswith(SPOT):
            return _still_holds(setting, job, measured)
        setting = replace(setting, plan=measured.plan)  # that the output is of
        if not job.run_dir:
            _remember(setting, job, measured)
            return True
        result = _result(setting, measured, _check(setting, measured.output), _decoding(setting))
        result = with_checkpoint_check(setting, result)
        if result.exact is not False:
            _remember(setting, job, measured)
        if tracker:
            tracker.finish(result)
            _complete(session, job, job.run_dir)
    except BaseException as error:
        if tracker:
            tracker.fail(error)
        raise
    return True


def _tracker(session: Session, job: Job, run_dir: Path) -> Tracker:
    machine = session.ranks.machine
    nodes = machine.get("nodes")  # of several nodes the first one has rank 0
    facts = environment(nodes[0] if nodes else machine, session.ranks.command)
    if nodes:
        facts["nodes"] = nodes
    return Tracker(run_dir, job.config, session.progress.warn, described(job.config, job.key, facts))


def _complete(session: Session, job: Job, run_dir: Path) -> None:
    """Let later sweeps find this run again, unless it is not what its key says."""
    if job.key is None:
        return
    of_run, warn = job.key.partition("-")[0], session.progress.warn
    if fingerprint(job.config, content_of(job.config, warn)) != of_run:
        warn(
            f"{run_dir.name}: ringexp's code, the prompt or the checkpoint changed while it ran, so no later "
            "sweep takes its results"
        )
        return
    CompletedRuns(job.config.completed_dir, session.ranks.machine, warn).add(of_run, run_dir)


@contextmanager
def short_collections() -> Iterator[None]:
    """Have the garbage collector pass over what is there by now, some 300,000 objects of imports and models.

    Going through those stops Python for .1 s and more, and might do so in the middle of a prompt.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class _Measured:
    """Timings of all ranks, and what was set for them, an entry an iteration; peak memory a rank; the latest
    plan, and this rank's output of it."""

    iterations: list[list[IterationTiming]]
    prompts: list[Prompt]
    back_to_back_ms: float
    peak_memory_bytes: list[int]
    plan: Plan
    output: torch.Tensor

    @property
    def settled(self) -> list[list[IterationTiming]]:
        """The iterations with the latest plan."""
        return self.iterations[-metrics.with_last_plan(self.prompts) :]

    @property
    def latencies_ms(self) -> list[float]:
        return [metrics.latency_ms(ranks) for ranks in self.iterations]

    def as_reference(self) -> dict[str, float]:
        """Return the figures that are stored as a reference.

        They are the median latency in ms, and the interquartile range divided by the median.
        """
        latency_ms = median(self.latencies_ms)
        return {"latency_ms_median": latency_ms, "spread": metrics.spread_ms(self.latencies_ms) / latency_ms}


def _measure(setting: PreparedJob, role: str, tracker: Tracker | None) -> _Measured:
    """Warm-up, then timed iterations, each from a common start and logged as it ends; then all in a row."""
    session, config = setting.session, setting.config
    course = setting.course()
    what = config.partitioner.name if role == "run" else f"reference ({role})"
    what = f"{what}, {config.layout.name}, {drift_label(config.hetero.percentages, config.hetero.drift)}"
    session.progress.stage(f"{what}: {config.seq_len} tokens", config.warmup + config.repeats)
    session.reset_peak_memory()
    references = session.references()
    iterations: list[list[IterationTiming]] = []
    prompts: list[Prompt] = []
    index, warmed_up = -config.warmup, False
    while index < config.repeats:
        course.begin(index)
        plan = course.plan
        gathered = session.gather((course.run(), course.replan_ms))
        ranks, replan_ms = [timing for timing, _ in gathered], max(ms for _, ms in gathered)
        if index >= 0:
            iterations.append(ranks)
            prompts.append(_prompt(setting, plan, ranks, replan_ms, references))
            if tracker:
                tracker.iteration(index, ranks, prompts[-1])
        if index + 1 < config.repeats:  # the output stays one of the latest plan
            course.learn([timing.busy_ms for timing in ranks], replan_ms)
        if not warmed_up:
            latency_ms = metrics.latency_ms(ranks)
            index, warmed_up = -enough_warmup(config.warmup, session.device.type, latency_ms), True
        index += 1
        if index > -config.warmup:
            session.progress.advance()
    session.barrier()
    back_to_back_ms = max(session.gather(course.back_to_back_ms(config.repeats)))
    peak_memory = session.gather(session.peak_memory_bytes())
    return _Measured(iterations, prompts, back_to_back_ms, peak_memory, course.plan, course.output)


def _prompt(
    setting: PreparedJob,
    plan: Plan,
    ranks: list[IterationTiming],
    replan_ms: float,
    references: References,
) -> Prompt:
    """What one iteration ran with, and how well that was."""
    percentages = setting.session.percentages
    flops = [setting.workload.flops(plan, rank) for rank in range(plan.world_size)]
    calibrated = setting.drift_speeds.get(tuple(percentages))
    efficiency = None
    if calibrated:
        efficiency = _capacity_efficiency(setting, metrics.latency_ms(ranks), calibrated, references)
    return Prompt(
        percentages=percentages,
        tokens=plan.tokens,
        speeds=[
            metrics.tflops(work, timing.busy_ms) if count else None
            for work, timing, count in zip(flops, ranks, plan.tokens, strict=True)
        ],
        calibrated_speeds=calibrated,
        capacity_efficiency=efficiency,
        replan_ms=replan_ms,
    )


def _capacity_efficiency(
    setting: PreparedJob, latency_ms: float, speeds: list[float], references: References
) -> float | None:
    """`metrics.capacity_efficiency`, for ranks at the session's present percentages with these speeds."""
    session = setting.session
    percentages = session.percentages if are_devices(session, setting.config) else []
    single_speed = metrics.full_speed(speeds, percentages) or references.single_speed_tflops
    return metrics.capacity_efficiency(latency_ms, speeds, references.single_ms, single_speed)


def _remember(setting: PreparedJob, job: Job, measured: _Measured) -> None:
    """Keep what other runs are measured against, if this job measures that."""
    session, config = setting.session, setting.config
    if session.rank == 0:
        store = ReferenceStore(config.references_dir, session.progress.warn)
        for kind, facts in job.references.items():
            if kind == job.role or (kind == "even" and config.partitioner.name == "even"):
                store.put(kind, facts, measured.as_reference(), session.ranks.invocation)
    session.barrier()


def _still_holds(setting: PreparedJob, job: Job, measured: _Measured) -> bool:
    """Compare a stored reference with how fast it is now; forget all of this machine if it is off."""
    session, config = setting.session, setting.config
    ((kind, facts),) = job.references.items()
    store = ReferenceStore(config.references_dir, session.progress.warn)

    def compare() -> bool:
        stored, spot = store.get(kind, facts), measured.as_reference()
        if stored is None:
            return False
        times = stored["latency_ms_median"], spot["latency_ms_median"]
        spreads = stored["spread"], spot["spread"]
        if not is_off(*times, *spreads, config.calibration.tolerance):
            return True
        count = store.forget(facts["machine"])
        session.progress.warn(
            f"the stored {kind} reference is off, it takes {times[1] / times[0] - 1:+.0%}; "
            f"{count} stored references of this machine are dropped, and those of this run measured anew"
        )
        return False

    return session.from_rank_zero(compare)


def _remember_single(setting: PreparedJob, job: Job) -> None:
    """Keep the latency of the whole workload on one full-speed device, and the speed of that device."""
    session, config = setting.session, setting.config
    latency_ms, in_a_row_ms, decode_ms = _measure_single(setting)
    if session.rank == 0:
        figures = {
            "latency_ms_median": latency_ms,
            "latency_ms_back_to_back": in_a_row_ms,
            "speed_tflops": setting.speeds[0],
        }
        if config.decode_tokens:
            figures["decode_ms_per_token"] = decode_ms
        store = ReferenceStore(config.references_dir, session.progress.warn)
        store.put("single", job.references["single"], figures, session.ranks.invocation)
    session.barrier()


def _measure_single(setting: PreparedJob) -> tuple[float | None, float | None, float | None]:
    """Median latency, ms, of the whole workload on one full-speed device; None if it does not fit there.

    With it the latency in a row, and the time of a decoded token, None if none are to be decoded.

    On a GPU that is a set of one rank. CPU ranks are parts of one device and their speeds are measured while
    all run, so all run the whole workload, each for itself, and rank 0's time counts.
    """
    session, config, workload = setting.session, setting.config, setting.workload
    session.progress.stage(f"reference (one device): {config.seq_len} tokens", config.repeats)
    chunks, starts = config.model.num_chunks(config.seq_len), starts_of(config)
    plan = make_plan(
        config.seq_len, [config.seq_len], causal=workload.shape.causal, chunks=chunks, starts=starts
    )
    ring = RingContext(plan, 0, LoopbackTransport(), setting.kernel, session.clock(workload))
    local = local_inputs(setting.x, plan, 0)
    times, decode_ms = [], None
    try:
        iteration = session.iteration(config, lambda: workload.forward(local, ring), ring)
        warmup = enough_warmup(config.warmup, session.device.type, iteration.run()[1].latency_ms)
        for _ in range(warmup - 1):
            iteration.run()
        for _ in range(config.repeats):
            times.append(iteration.run()[1].latency_ms)
            session.progress.advance()
        in_a_row_ms = iteration.back_to_back_ms(config.repeats)
        if config.decode_tokens:
            generator = text_model_of(workload).generator(ring, (), ())
            decode_ms = decode(session, generator, local, config.decode_tokens).ms_per_token
    except torch.OutOfMemoryError:
        session.progress.warn(f"{config.seq_len} tokens do not fit one device: no capacity efficiency")
        return None, None, None
    return median(times), in_a_row_ms, decode_ms


def enough_warmup(asked: int, device: str, latency_ms: float) -> int:
    """How many iterations are not timed, the first of which took so long: on a GPU at least WARM_MS of them,
    but for very short ones. None if none are asked for."""
    if not asked or device == "cpu":
        return asked
    return max(asked, min(ceil(WARM_MS / latency_ms), MOST_WARM))


def _decoding(setting: PreparedJob) -> Decoding | None:
    """Decode after prefill, if the run is to."""
    session, config = setting.session, setting.config
    if not config.decode_tokens:
        return None
    references = session.references()
    with session.limited_memory(config), short_collections():
        how = setting.ring(), setting.x, setting.speeds, setting.room
        ranks = decode_together(session, config, setting.workload, *how)
    agreeing = None
    if config.check:
        parts = unpadded(setting.x, setting.plan)
        agreeing = tokens_agreeing(session, setting.workload, parts, ranks, setting.checker)
        total = config.decode_tokens * setting.x.shape[0]
        if agreeing < total and setting.workload.dtype == torch.float32:
            session.progress.warn(f"one process would have chosen only {agreeing} of {total} tokens")
    need, limits = session.memory_need(config, setting.workload), session.memory_limits(config)
    contexts = None
    if limits:
        alone = longest_context(need, [max(limits)], [1.0])
        contexts = longest_context(need, limits, setting.plan.shares), alone
    texts = continuations(config, ranks) if has_prompt(config) else []
    return decoding_figures(ranks, agreeing, references.single_decode_ms, contexts, texts)


def _check(setting: PreparedJob, output: torch.Tensor) -> Accuracy | None:
    """Compare all ranks' outputs with a single process, on the rank with the largest percentage."""
    session, config, plan = setting.session, setting.config, setting.plan
    if not config.check:
        return None
    session.progress.stage(f"checking against one process: {config.seq_len} tokens")
    checker = setting.checker
    shapes = session.gather(tuple(output.shape))
    sizes = [
        [prod(shape) * output.itemsize if rank != checker == peer else 0 for peer in range(plan.world_size)]
        for rank, shape in enumerate(shapes)
    ]
    accuracy: Accuracy | None = None
    if session.rank == checker:
        received = {rank: output.new_empty(shapes[rank]) for rank in plan.members if rank != checker}
        session.transport.exchange({}, received, sizes)
        accuracy = _accuracy(setting, received | {checker: output})
    else:
        sends = {checker: output} if output.numel() else {}
        session.transport.exchange(sends, {}, sizes)
    return session.gather(accuracy)[checker]


def _accuracy(setting: PreparedJob, outputs: dict[int, torch.Tensor]) -> Accuracy:
    workload, plan = setting.workload, setting.plan
    exact, single = setting.session.expected(setting.config, workload, unpadded(setting.x, plan))
    parts = [(workload.part_of(exact, plan, rank), out) for rank, out in outputs.items()]
    return accuracy_of([(out, part) for part, out in parts if part is not None], single, exact)


def _costs(setting: PreparedJob) -> list[RankCost]:
    """What the plan expects work to cost; empty for shard=kv, whose exchange it does not know."""
    return list(setting.source.costs(setting.workload.shape.causal)) if setting.plan.aligned else []


def _result(
    setting: PreparedJob, measured: _Measured, accuracy: Accuracy | None, decoding: Decoding | None
) -> RunResult:
    session, config, plan = setting.session, setting.config, setting.plan
    references = session.references()
    costs, units = _costs(setting), setting.workload.shape.layers
    predicted_ms = None
    if costs and not config.hetero.drift:
        predicted_ms = units * plan.predicted_ms(costs, setting.hop, config.transport.prefetch_hops)
    settled = measured.iterations if config.hetero.drift else measured.settled
    latencies_ms = [metrics.latency_ms(ranks) for ranks in settled]
    latency, medians = median(latencies_ms), metrics.per_rank_medians(settled)
    flops = sum(setting.workload.flops(plan, rank) for rank in range(plan.world_size))
    adaptation = metrics.adaptation(measured.prompts, measured.latencies_ms)
    efficiency = adaptation.capacity_efficiency
    if not config.hetero.drift:
        efficiency = _capacity_efficiency(setting, latency, setting.speeds, references)
    even_ms = latency if config.partitioner.name == "even" else references.even_ms
    return RunResult(
        latency_ms_median=latency,
        latency_ms_spread=metrics.spread_ms(latencies_ms),
        latency_ms_iterations=measured.latencies_ms,
        settled_iterations=len(settled),
        latency_ms_predicted=predicted_ms,
        time_to_first_token_ms=latency if setting.workload.text_model else None,
        latency_ms_back_to_back=measured.back_to_back_ms,
        hop_latency_ms=session.calibrator.link.latency_ms if session.calibrator.link else None,
        hop_gbps=session.calibrator.link.gbps if session.calibrator.link else None,
        tokens=plan.tokens,
        kv_tokens=plan.kv_tokens,
        shares=plan.shares,
        speeds=setting.speeds,
        throttle=session.throttle.name,
        throttle_emulated=session.throttle.emulated,
        throttle_achieved=session.gather(session.throttle.achieved),
        sm_counts=session.gather(session.throttle.sm_count),
        cublas_sms=session.gather(session.throttle.cublas_sms),
        slowdown=metrics.slowdown(latency, references.homogeneous_ms),
        efficiency=metrics.efficiency(medians["busy_ms"], latency),
        speedup_over_even=metrics.speedup_over_even(latency, even_ms),
        capacity_efficiency=efficiency,
        **medians,
        tflops=metrics.tflops(flops, latency),
        peak_memory_bytes=measured.peak_memory_bytes,
        error_max_abs=accuracy.error_max_abs if accuracy else None,
        error_single_max_abs=accuracy.error_single_max_abs if accuracy else None,
        error_token=accuracy.error_token if accuracy else None,
        error_single_token=accuracy.error_single_token if accuracy else None,
        exact=accuracy.exact if accuracy else None,
        why_inexact=accuracy.why_inexact if accuracy else None,
        error_checkpoint=None,  # see `with_checkpoint_check`
        kernel=setting.kernel.name,
        transport=session.transport.name,
        plan=[str(shard) for shard in plan.q_shards],
        costs=[asdict(cost) for cost in costs],
        hop=asdict(setting.hop) if setting.hop else None,
        num_units=units,
        decode=decoding,
        adaptation=adaptation if config.hetero.drift or config.partitioner.name == "adaptive" else None,
        references=asdict(references),
        speed_model=setting.source.describe_formula() if config.partitioner.name == "formula" else {},
        missing_references=session.missing_references(),
    )
