"""The reference `single`: the whole workload on one full-speed device."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch

from ringexp.models.inputs import local_inputs
from ringexp.planning import Plan, make_plan
from ringexp.ring.context import RingContext
from ringexp.ring.loopback import LoopbackTransport
from ringexp.worker.decode import decode, text_model_of
from ringexp.worker.measure import enough_warmup
from ringexp.worker.prepare import PreparedJob


@dataclass(frozen=True)
class SingleDevice:
    """Times on one device, in ms; all None if the prompt does not fit there.

    Attributes:
        latency_ms: the median time per prompt.
        back_to_back_ms: the time of a prompt where nothing separates prompts.
        decode_ms_per_token: the time of a decoded token; None also if none are decoded.
    """

    latency_ms: float | None = None
    back_to_back_ms: float | None = None
    decode_ms_per_token: float | None = None


def remember_single_device(job: PreparedJob) -> None:
    """Measure the workload on one full-speed device, and store that with the speed of the device."""
    times = measure_single_device(job)
    figures = {
        "latency_ms_median": times.latency_ms,
        "latency_ms_back_to_back": times.back_to_back_ms,
        "speed_tflops": job.speeds[0],
    }
    if job.settings.decode_tokens:
        figures["decode_ms_per_token"] = times.decode_ms_per_token
    job.tools.references.remember(figures)


def measure_single_device(job: PreparedJob) -> SingleDevice:
    """Time the whole workload on one full-speed device.

    On a GPU that is a set of one rank. CPU ranks are parts of one device, and their speeds are measured while
    all of them run. So each of them runs the whole workload by itself, and the time of rank 0 counts.
    """
    session, settings, workload = job.session, job.settings, job.workload
    session.progress.stage(f"reference (one device): {job.run.seq_len} tokens", settings.repeats)
    clock = session.throttle.clock(workload.shape.only_attention)
    ring = RingContext(_whole_plan(job), 0, LoopbackTransport(), job.tools.kernel, clock)
    local = local_inputs(job.x, ring.plan, 0)
    times, decode_ms = [], None
    try:
        iteration = job.tools.graphs.iteration(lambda: workload.forward(local, ring), ring)
        warmup = enough_warmup(settings.warmup, session.device.type, iteration.run()[1].latency_ms)
        for _ in range(warmup - 1):
            iteration.run()
        for _ in range(settings.repeats):
            times.append(iteration.run()[1].latency_ms)
            session.progress.advance()
        back_to_back_ms = iteration.back_to_back_ms(settings.repeats)
        if settings.decode_tokens:
            generator = text_model_of(workload).generator(ring, (), ())
            decode_ms = decode(session.device, generator, local, settings.decode_tokens).ms_per_token
    except torch.OutOfMemoryError:
        session.progress.warn(f"{job.run.seq_len} tokens do not fit one device: no capacity efficiency")
        return SingleDevice()
    return SingleDevice(median(times), back_to_back_ms, decode_ms)


def _whole_plan(job: PreparedJob) -> Plan:
    """Return the plan by which one rank holds the whole prompt."""
    run = job.run
    return make_plan(run.seq_len, [run.seq_len], mask=run.mask, chunks=run.chunks, starts=run.starts)
