"""What a rank of a test pool does as a session of its own: calibrate, and say what it then knows."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist

from ringexp.calibration.source import TableSpeeds
from ringexp.config import AttentionModelConfig, CalibrationConfig, Config, HeteroConfig
from ringexp.hetero.pacing import Pacer
from ringexp.hetero.throttle import AppliedThrottle, _paced
from ringexp.planning import HopCost, Plan, make_plan
from ringexp.ring.loop import RingContext
from ringexp.ring.transport import resolved
from ringexp.worker.progress import ProgressWriter
from ringexp.worker.prompt_loop import PromptLoop
from ringexp.worker.rank_set import RankSet
from ringexp.worker.session import Session
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


def open_session(rank: int, config: Config, really: list[float]) -> Session:
    """A session of this rank, whose hardware is as fast as `really[rank]` percent of the others'.

    The progress of rank 0 is in `progress` under the output root.
    """
    throttle = config.hetero.throttle
    percentages = list(config.hetero.percentages)
    ranks = RankSet("cpu", throttle, "gloo", percentages, 1, {"device": "cpu"}, [])
    root = Path(config.output_root)
    group = dist.distributed_c10d._get_default_store()
    return Session(
        ranks,
        rank,
        torch.device("cpu"),
        AppliedThrottle(throttle, percentages[rank], False, None, None, Pacer(really[rank])),
        transport(),
        resolved(None),
        dist.PrefixStore(f"session{next(_sessions)}", group),
        ProgressWriter(root / "progress" if rank == 0 else None),
    )


@torch.inference_mode()
def speeds(
    rank: int, config: Config, really: list[float], costs: bool = False, devices: list[str] | None = None
) -> TableSpeeds:
    """What one session after another would know of the ranks' speeds, on GPUs of these names if given."""
    session = open_session(rank, config, really)
    if devices:
        session._devices = devices
    return session.calibrator.speeds(config, costs)


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
    session = open_session(rank, config, list(config.hetero.percentages))
    session.throttle = replace(session.throttle, change=_paced)
    workload = session.workload(config)
    kernel = session.kernel(config, workload)
    x = workload.inputs(config.seq_len, config.seed)
    exact = workload.reference(x, torch.float32)
    plans = [
        make_plan(config.seq_len, each, config.layout.name, causal=workload.shape.causal) for each in tokens
    ]

    def ring_of(plan: Plan) -> RingContext:
        return RingContext(plan, rank, session.transport, kernel, session.clock())

    seen = []
    run = PromptLoop(session, config, workload, x, ring_of, plans[0], Turns(plans[1:]))  # type: ignore[arg-type]
    for prompt, plan in enumerate(plans):
        run.begin(prompt)
        timing, error = run.run(), 0.0
        if plan.tokens[rank] and (part := workload.part_of(exact, plan, rank)) is not None:
            error = (run.output - part).abs().max().item()
        assert run.output.numel() or not plan.tokens[rank]
        seen.append((error, run.replan_ms, timing.busy_ms, session.throttle.percentage))
        if prompt + 1 < len(plans):
            run.learn([0.0] * config.world_size, 0.0)
    return seen


def hop_cost(rank: int, config: Config) -> HopCost | None:
    """What the session measures hops to cost."""
    session = open_session(rank, config, [100.0] * config.world_size)
    return session.calibrator.hop_cost(config, session.workload(config))


@torch.inference_mode()
def speeds_in_turn(rank: int, configs: list[Config], really: list[float]) -> None:
    """One session that is asked for the speeds of several configs."""
    session = open_session(rank, configs[0], really)
    for config in configs:
        session.calibrator.speeds(config, False)


def asked_rank_zero(rank: int, config: Config, error: Exception | None) -> tuple[str, str]:
    """Type and text of what this rank gets when rank 0 answers, or raises."""

    def answer() -> dict[str, float]:
        if error:
            raise error
        return {"ms": 0.1}

    try:
        return "answer", repr(open_session(rank, config, [100.0] * 2).from_rank_zero(answer))
    except Exception as raised:
        return type(raised).__name__, str(raised)


def tell_in_turn(rank: int, config: Config, values: list[object]) -> list[list[object]]:
    """Return what this rank receives when every rank sends the same values, one after the other."""
    session = open_session(rank, config, [100.0] * 2)
    return [session.gather(value) for value in values]
