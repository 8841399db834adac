"""One run, from a checked config to its tables: plan what has to run, start the ranks, show what came out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ringexp.calibration.source import NominalSpeeds, TableSpeeds
from ringexp.config import AttentionModelConfig, Config
from ringexp.errors import RunFailed, UserError
from ringexp.hetero.throttle import resolve_throttle
from ringexp.launch.local import run_ranks
from ringexp.launch.planning import DEFAULT_TILE, plan_for
from ringexp.launch.spec import Job, RankSet
from ringexp.machine import default_device, gpu_count
from ringexp.report.console import Console
from ringexp.tracking.environment import command_line, machine_facts
from ringexp.tracking.files import read_results
from ringexp.tracking.references import ReferenceStore, even_facts, homogeneous_facts


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Carry out one config and print its plan and results; returns the content of results.json.

    Everything is written under `run_dir`. Raises UserError for settings that cannot work here.
    """
    device = config.device if config.device != "auto" else default_device()
    console = Console()
    throttle = resolve_throttle(config.hetero.throttle, device, config.hetero.percentages)
    _check_fits(config, device, throttle)
    if config.dry_run:
        plan, source, note = _dry_plan(config, device)
        console.plan(config, plan, source, throttle, note)
        return {"status": "planned", "tokens": plan.tokens}
    console.heading(config, device, throttle)
    sets = rank_sets(config, run_dir, device, throttle)
    with console.progress() as display:
        for index, ranks in enumerate(sets):
            run_ranks(ranks, run_dir / "ranks" / str(index), config.launch.port, display)
    results = read_results(run_dir)
    assert results is not None, "rank 0 writes results.json before it ends"
    console.results(config, results, run_dir)
    if results["exact"] is False:
        raise RunFailed(
            f"the output is off by {results['error_max_abs']:.3g} from a single process "
            f"(which is off by {results['error_single_max_abs']:.3g} itself): this run's figures are worthless"
        )
    return results


def rank_sets(config: Config, run_dir: Path, device: str, throttle: str) -> list[RankSet]:
    """The sets of ranks to start, in order: full speed for the homogeneous reference, then the run's own.

    References that are remembered are not measured again.
    """
    machine = machine_facts(device)
    store = ReferenceStore(Path(config.output_root) / "references")
    even = _reference(config)
    jobs = [Job(config, "run", run_dir)]
    if config.references and config.partitioner.name != "even":
        if store.get("even", even_facts(config, machine)) is None:
            jobs.insert(0, Job(even, "even"))
    full = replace(even.hetero, percentages=[100.0] * config.world_size, throttle="none")
    homogeneous = replace(even, hetero=full, shard="tokens")
    sets = []
    if config.references and store.get("homogeneous", homogeneous_facts(config, machine)) is None:
        sets.append(_rank_set(homogeneous, device, "none", machine, [Job(homogeneous, "homogeneous")]))
    return [*sets, _rank_set(config, device, throttle, machine, jobs)]


def _reference(config: Config) -> Config:
    """The config whose figures a run is compared with: split evenly, not tracked, not checked."""
    return replace(config, partitioner=replace(config.partitioner, name="even"), check=False)


def _rank_set(
    config: Config, device: str, throttle: str, machine: dict[str, Any], jobs: list[Job]
) -> RankSet:
    return RankSet(
        device=device,
        throttle=throttle,
        transport=_transport(config, device),
        percentages=[float(p) for p in config.hetero.percentages],
        num_devices=gpu_count() if device == "cuda" else 1,
        machine=machine,
        command=command_line(),
        jobs=jobs,
    )


def _transport(config: Config, device: str) -> str:
    name = config.transport.name
    if name == "auto":
        return "nccl" if device == "cuda" else "gloo"
    return name


def _check_fits(config: Config, device: str, throttle: str) -> None:
    """Raises UserError for what can be known to fail before any process starts."""
    tile = config.tile or DEFAULT_TILE[device]
    if config.seq_len < config.world_size * tile:
        raise UserError(
            f"seq_len={config.seq_len} is smaller than one tile of {tile} tokens for each of "
            f"{config.world_size} ranks; use seq_len>={config.world_size * tile} or a smaller tile"
        )
    if config.dry_run:
        return
    gpus = gpu_count()
    if device == "cuda" and not gpus:
        raise UserError("device=cuda, but no CUDA device is visible; use device=cpu or device=auto")
    transport = _transport(config, device)
    if transport == "nccl" and device != "cuda":
        raise UserError(f"transport=nccl needs CUDA, but device={device}; use transport=gloo or auto")
    if transport == "nccl" and config.world_size > gpus:
        raise UserError(
            f"hetero.percentages={config.hetero.percentages} asks for {config.world_size} ranks, but NCCL takes "
            f"one rank a GPU and {gpus} is visible; use at most {gpus} ranks, or transport=gloo"
        )
    if config.kernel.name == "cudnn" and device != "cuda":
        raise UserError(f"kernel=cudnn needs CUDA, but device={device}; use kernel=sdpa or kernel=auto")


def _dry_plan(config: Config, device: str) -> tuple[Any, Any, str | None]:
    """Plan, speed source and a note on where the speeds come from; starts nothing, needs no GPU."""
    from ringexp.calibration.table import SpeedTable

    causal = config.model.causal if isinstance(config.model, AttentionModelConfig) else True
    nominal = NominalSpeeds(config.hetero.percentages)
    note = None
    source: Any = nominal
    if config.partitioner.name in ("lut", "formula"):
        rows = SpeedTable(Path(config.output_root) / "calibration" / "speeds.csv").load()
        known = _remembered(config, device, rows)
        if known is None:
            note = "speeds are not measured yet and taken to be the percentages; a real run measures them"
        else:
            source, note = known, "speeds are from the calibration table"
    return plan_for(config, source, device, causal), source, note


def _remembered(config: Config, device: str, rows: Any) -> TableSpeeds | None:
    """The table's speeds for this machine and model, if it has a row for every percentage."""
    from ringexp.machine import cpu_cores, cpu_name
    from ringexp.models.shapes import shape_of

    if device == "cuda":
        from ringexp.tracking.environment import gpu_names

        hardware = set(gpu_names())
    else:
        hardware = {f"{cpu_name()} x{max(1, cpu_cores() // config.world_size)}"}
    throttle = resolve_throttle(config.hetero.throttle, device, config.hetero.percentages)
    prefix = f"{shape_of(config.model)}-"
    found = [
        row
        for row in rows
        if row.hardware in hardware and row.throttle == throttle and row.shape.startswith(prefix)
    ]
    shapes = {row.shape for row in found}
    wanted = {float(p) for p in config.hetero.percentages}
    if len(shapes) != 1 or len({row.hardware for row in found}) != 1:
        return None
    if len({row.ranks_per_device for row in found}) != 1 or not wanted <= {row.percentage for row in found}:
        return None
    return TableSpeeds(config.seq_len, list(config.hetero.percentages), [found] * config.world_size)
