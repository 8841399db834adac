"""Folders of runs as `python -m ringexp` leaves them, with figures that a test chooses."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ringexp.config import (
    AttentionModelConfig,
    Config,
    HeteroConfig,
    KernelConfig,
    LayoutConfig,
    PartitionerConfig,
    TrackerConfig,
)
from ringexp.hetero.drift import DriftConfig
from ringexp.planning import make_plan
from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.tracking import metrics
from ringexp.tracking.files import HOP_FIELDS, ITERATION_FIELDS
from ringexp.tracking.results import Prompt

ENVIRONMENT = {
    "time": "2026-03-01T10:00:00+00:00",
    "host": "box",
    "system": "Linux",
    "python": "3.11.2",
    "versions": {"torch": "2.11.0", "ringexp": "0.1.0"},
    "machine": {"device": "cuda", "gpus": ["NVIDIA H200", "NVIDIA H200"], "driver": "580"},
    "commit": "abc",
    "command": ["python", "-m", "ringexp"],
}


def write_run(
    sweep_dir: Path,
    number: int = 0,
    *,
    percentages: tuple[float, ...] = (100, 50),
    seq_len: int = 4096,
    layout: str = "zigzag",
    partitioner: str = "lut",
    shard: str = "tokens",
    kernel: str = "auto",
    latency_ms: float = 10.0,
    status: str = "complete",
    without: tuple[str, ...] = (),
    drift: DriftConfig | None = None,
    **figures: Any,
) -> Path:
    """A run's config.yaml and results.json; `figures` replace what results.json has, `without` leaves out."""
    config = Config(
        model=AttentionModelConfig(name="attention_mha_4096", dtype="bfloat16"),
        hetero=HeteroConfig(list(percentages), drift=drift or DriftConfig()),
        partitioner=PartitionerConfig(partitioner),
        layout=LayoutConfig(layout),
        kernel=KernelConfig(kernel),
        tracker=TrackerConfig(mode="disabled"),
        seq_len=seq_len,
        split=shard,
    )
    folder = sweep_dir / f"{number}_{partitioner}_{layout}_{seq_len}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    ranks = range(len(percentages))
    results = {
        "latency_ms_median": latency_ms,
        "latency_ms_spread": 0.1,
        "latency_ms_iterations": [latency_ms] * len(percentages),
        "latency_ms_back_to_back": latency_ms,
        "latency_ms_predicted": latency_ms,
        "tokens": [seq_len // len(percentages) for _ in ranks],
        "kv_tokens": [seq_len // len(percentages) for _ in ranks],
        "shares": [1 / len(percentages) for _ in ranks],
        "speeds": [6.0 * percentage for percentage in percentages],
        "throttle": "mps",
        "throttle_emulated": False,
        "sm_counts": [132 for _ in ranks],
        "slowdown": 1.5,
        "efficiency": 0.9,
        "speedup_over_even": 1.2,
        "capacity_efficiency": 0.8,
        "busy_ms": [0.9 * latency_ms for _ in ranks],
        "tflops": 500.0,
        "error_max_abs": 0.01,
        "error_single_max_abs": 0.01,
        "exact": True,
        "kernel": "triton" if kernel == "auto" else kernel,
        "transport": "nccl",
        "plan": ["0:1" for _ in ranks],
        "references": {"homogeneous_ms": 5.0, "single_ms": 20.0},
        "environment": ENVIRONMENT,
        "wandb": None,
    } | figures
    results = {name: value for name, value in results.items() if name not in without}
    (folder / "results.json").write_text(json.dumps({"status": status, **results}))
    return folder


def write_iterations(
    folder: Path, iterations: list[list[IterationTiming]], prompts: list[Prompt] | None = None
) -> None:
    """iterations.csv and hops.csv of a run; those of a run before there were `prompts` are shorter."""
    with (
        (folder / "iterations.csv").open("w", newline="") as file,
        (folder / "hops.csv").open("w", newline="") as hops,
    ):
        per_iteration, per_hop = csv.writer(file), csv.writer(hops)
        per_iteration.writerow(ITERATION_FIELDS)
        per_hop.writerow(HOP_FIELDS)
        for index, ranks in enumerate(iterations):
            for rank, timing in enumerate(ranks):
                latency = metrics.latency_ms(ranks)
                comm, idle = metrics.comm_ms(timing), metrics.idle_ms(ranks, rank)
                values = [index, rank, latency, timing.busy_ms, comm, idle]
                if prompts:
                    prompt = prompts[index]
                    values += [prompt.percentages[rank], prompt.tokens[rank], prompt.speeds[rank]]
                    values += [prompt.capacity_efficiency, prompt.replan_ms]
                per_iteration.writerow(values)
                for hop, times in enumerate(timing.hops):
                    row = (
                        times.source,
                        times.wait_ms,
                        times.compute_ms,
                        times.transfer_ms,
                        times.transfer_start_ms,
                    )
                    per_hop.writerow((index, rank, times.layer, hop, *row))


def two_rank_iteration(slow_ms: float) -> list[IterationTiming]:
    """Rank 0 is done after 4 ms, rank 1 after `slow_ms`."""
    return [
        IterationTiming(4.0, 3.5, [HopTiming(0, 0.0, 2.0), HopTiming(1, 0.5, 1.0, 0.7, 0.1)]),
        IterationTiming(
            slow_ms, slow_ms, [HopTiming(1, 0.0, slow_ms / 2), HopTiming(0, 0.0, slow_ms / 2 - 1, 0.6, 0.1)]
        ),
    ]


def ideal_latency_ms(tokens: list[int], layout: str, speeds: list[float]) -> float:
    """The slowest rank's attention time if nothing else took any: pairs / speed."""
    plan = make_plan(sum(tokens), tokens, layout)
    return max(2e-6 * plan.pairs(rank) / speed for rank, speed in enumerate(speeds))
