"""Sessions of a test pool's ranks, which calibrate and return the speeds that they know then."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist

from ringexp.calibration.source import TableSpeeds
from ringexp.choices import THROTTLES
from ringexp.config import AttentionModelConfig, CalibrationConfig, Config, HeteroConfig
from ringexp.configure.resolve import resolve
from ringexp.hetero.applied import AppliedThrottle
from ringexp.hetero.cpu_pacing import set_pace
from ringexp.hetero.pacing import Pacer
from ringexp.planning import EqualLinks, Plan, make_plan
from ringexp.ring.context import RingContext
from ringexp.ring.transport import resolved
from ringexp.worker.communicator import Communicator
from ringexp.worker.cuda_graphs import CudaGraphs
from ringexp.worker.prepare import calibration_needs, job_tools, links_of, speed_meter
from ringexp.worker.progress import ProgressWriter
from ringexp.worker.prompt_loop import PromptLoop, RingWork
from ringexp.worker.rank_set import Job, RankSet
from ringexp.worker.session import Session, open_session
from support.ring_ranks import transport

_sessions = count()


def attention_config(root: Path, throttle: str, world_size: int, **settings: object) -> Config:
    """A tiny causal attention module on the CPU, quickly calibrated; everything is written under `root`."""
    return Config(
        model=AttentionModelConfig(
            name="attention_tiny", emb_dim=64, num_heads=4, num_kv_heads=4, head_dim=16
        ),
        hetero=HeteroConfig([100.0] * world_size, throttle),
        calibration=CalibrationConfig(min_seconds=0.02, min_samples=3, max_seconds=0.02),
        device="cpu",
        output_root=str(root),
        **settings,  # type: ignore[arg-type]
    )


def session_of(rank: int, config: Config, really: list[float]) -> Session:
    """A session of this rank, whose hardware is as fast as `really[rank]` percent of the others'.

    The progress of rank 0 is in `progress` under the output root.
    """
    throttle = config.hetero.throttle
    percentages = list(config.hetero.percentages)
    ranks = RankSet("cpu", throttle, "gloo", percentages, 1, {"device": "cpu"}, [])
    root = Path(config.output_root)
    store = dist.PrefixStore(f"session{next(_sessions)}", dist.distributed_c10d._get_default_store())
    return open_session(
        ranks,
        torch.device("cpu"),
        Communicator(rank, resolved(None), store),
        transport(),
        AppliedThrottle(THROTTLES[throttle], percentages[rank], pacer=Pacer(really[rank])),
        ProgressWriter(root / "progress" if rank == 0 else None),
    )


def speeds_for(session: Session, config: Config, costs: bool) -> TableSpeeds:
    """Calibrate for a config, and return the ranks' speeds that the session knows then."""
    run = resolve(config, num_gpus=0)
    needs = calibration_needs(run, costs)
    tools = job_tools(session, Job(run, "run"), max(config.seq_len, *needs.lengths))
    return session.calibrator.speeds(needs, speed_meter(session, run, tools), tools.memory)


@torch.inference_mode()
def speeds(
    rank: int, config: Config, really: list[float], costs: bool = False, devices: list[str] | None = None
) -> TableSpeeds:
    """Return the ranks' speeds that a new session knows, on GPUs of these names if given."""
    session = session_of(rank, config, really)
    if devices:
        session.throttle._devices = devices
    return speeds_for(session, config, costs)


class Turns:
    """A planner whose plans are given: `tokens` of each prompt, one after the other."""

    def __init__(self, plans: list[Plan]) -> None:
        self._plans = iter(plans)

    def observe(self, busy_ms: list[float], replan_ms: float) -> Plan:
        return next(self._plans)


@torch.inference_mode()
def course(rank: int, config: Config, tokens: list[list[int]]) -> list[tuple[float, float, float, float]]:
    """A prompt a plan: how far this rank's output is from a single process, re-planning ms, busy ms, and the
    percentage it ran at; no output counts as right where nothing is held."""
    session = session_of(rank, config, list(config.hetero.percentages))
    session.throttle.applied = replace(session.throttle.applied, change=set_pace)
    tools = job_tools(session, Job(resolve(config, num_gpus=0), "run"), 2 * config.seq_len)
    workload = tools.workload
    x = workload.inputs(config.seq_len, config.seed)
    exact = workload.reference(x, torch.float32)
    plans = [make_plan(config.seq_len, each, config.layout.name, mask=workload.shape.mask) for each in tokens]

    def ring_of(plan: Plan) -> RingContext:
        return RingContext(plan, rank, session.transport, tools.kernel, session.throttle.clock())

    seen = []
    work, turns = RingWork(workload, x, ring_of), Turns(plans[1:])
    run = PromptLoop(session, config.hetero, work, CudaGraphs(False), plans[0], turns)  # type: ignore[arg-type]
    for prompt, plan in enumerate(plans):
        run.begin(prompt)
        timing, error = run.run(), 0.0
        if plan.tokens[rank] and (part := workload.part_of(exact, plan, rank)) is not None:
            error = (run.output - part).abs().max().item()
        assert run.output.numel() or not plan.tokens[rank]
        seen.append((error, run.replan_ms, timing.busy_ms, session.throttle.applied.percentage))
        if prompt + 1 < len(plans):
            run.learn([0.0] * config.world_size, 0.0)
    return seen


def hop_cost(rank: int, config: Config) -> EqualLinks | None:
    """Return the links that the session measures."""
    session = session_of(rank, config, [100.0] * config.world_size)
    run = resolve(config, num_gpus=0)
    return links_of(session, run, job_tools(session, Job(run, "run"), 2 * config.seq_len))


@torch.inference_mode()
def speeds_in_turn(rank: int, configs: list[Config], really: list[float]) -> None:
    """One session that is asked for the speeds of several configs."""
    session = session_of(rank, configs[0], really)
    for config in configs:
        speeds_for(session, config, costs=False)


def asked_rank_zero(rank: int, config: Config, error: Exception | None) -> tuple[str, str]:
    """Type and text of what this rank gets when rank 0 answers, or raises."""

    def answer() -> dict[str, float]:
        if error:
            raise error
        return {"ms": 0.1}

    try:
        return "answer", repr(session_of(rank, config, [100.0] * 2).communicator.from_rank_zero(answer))
    except Exception as raised:
        return type(raised).__name__, str(raised)


def tell_in_turn(rank: int, config: Config, values: list[object]) -> list[list[object]]:
    """Return what this rank receives when every rank sends the same values, one after the other."""
    session = session_of(rank, config, [100.0] * 2)
    return [session.communicator.gather(value) for value in values]
