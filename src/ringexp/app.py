"""One run, from a checked config to its tables: plan what has to run, start the ranks, show what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ringexp.calibration.source import NominalSpeeds, TableSpeeds
from ringexp.calibration.table import SpeedTable
from ringexp.config import DEFAULT_TILE, AttentionModelConfig, Config, HeteroConfig
from ringexp.errors import RunFailed, UserError
from ringexp.hetero.profiles import beside
from ringexp.hetero.throttle import IN_PROCESS, resolve_throttle
from ringexp.launch.local import run_ranks
from ringexp.launch.planning import plan_for
from ringexp.launch.spec import Job, RankSet
from ringexp.launch.supervision import Display, RunRanks, jobs_begun
from ringexp.machine import cores_a_rank, cpu_name, default_device, gpu_count, gpus_reach_each_other
from ringexp.models.shapes import shape_of
from ringexp.planning import BY_COST, Plan, check_enough_tiles
from ringexp.report.console import Console
from ringexp.tracking.completed import CompletedRuns, copy_results
from ringexp.tracking.environment import command_line, gpu_names, machine_facts
from ringexp.tracking.files import mark_ended, read_results
from ringexp.tracking.references import ReferenceStore, even_facts, homogeneous_facts, single_facts


@dataclass(frozen=True)
class Place:
    """Where ranks run, and what starts them there.

    num_gpus: of all nodes together. nodes: the machine facts of each, by device type, if they are several.
    """

    num_gpus: int = field(default_factory=lambda: gpu_count())
    num_nodes: int = 1
    run_ranks: RunRanks = run_ranks
    command: list[str] = field(default_factory=command_line)
    nodes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def machine(self, device: str) -> dict[str, Any]:
        """What decides speed there, as `machine_facts`."""
        if self.num_nodes == 1:
            return machine_facts(device)
        return {"device": device, "nodes": self.nodes[device]}


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Carry out one config and print its plan and results; returns the content of results.json.

    Everything is written under `run_dir`. Raises UserError for settings that cannot work here, RunFailed for
    a run that ended badly.
    """
    device = _device(config)
    throttle = _throttle(config, device)
    _check_fits(config, device, Place())
    console = Console()
    if config.dry_run:
        plan, note = _dry_plan(config, device, throttle)
        console.plan(config, plan, throttle, note)
        return {"status": "planned", "tokens": plan.tokens}
    console.heading(config, device, throttle)
    (outcome,) = execute([(config, run_dir)], console)
    if isinstance(outcome, Exception):
        raise outcome
    console.results(config, outcome, run_dir)
    return outcome


Outcome = dict[str, Any] | UserError | RunFailed
"""What a run came to: the content of its results.json, or why there is none worth having."""


def execute(
    runs: Sequence[tuple[Config, Path]], console: Console, resume: bool = False, place: Place | None = None
) -> list[Outcome]:
    """Run configs in as few sets of ranks as they allow; returns their outcomes in the order given.

    A run that fails ends its ranks; new ones go on with the jobs after it. With `resume`, or the setting of
    that name, a config that an equal run has completed is not run again. An interrupt ends all: what has not
    ended by then is marked so. place: this machine unless given.
    """
    place = place or Place()
    failures: dict[Path, UserError | RunFailed] = {}
    fitting = []
    for config, run_dir in runs:
        device = _device(config)
        try:
            _check_fits(config, device, place)
            if not resumed(config, run_dir, resume, place.machine(device)):
                fitting.append((config, run_dir))
        except UserError as error:
            failures[run_dir] = error
    try:
        with console.progress() as display:
            for index, ranks in enumerate(rank_sets(fitting, place)):
                _run_set(place, ranks, fitting[0][1] / "ranks" / str(index), display, failures)
    except KeyboardInterrupt as interrupt:
        mark_interrupted(fitting, f"interrupted: {str(interrupt) or 'Ctrl-C'}")
        raise
    return [failures.get(run_dir) or outcome(run_dir) for _, run_dir in runs]


def mark_interrupted(runs: Sequence[tuple[Config, Path]], reason: str) -> None:
    """Say of every run that has not ended that it was interrupted, and whether it had begun."""
    for _, run_dir in runs:
        mark_ended(run_dir, "interrupted", reason if read_results(run_dir) else f"not begun ({reason})")


def resumed(config: Config, run_dir: Path, resume: bool, machine: dict[str, Any]) -> bool:
    """Whether an equal run is complete; if so its results are in `run_dir` now."""
    if not (resume if config.resume is None else config.resume):
        return False
    completed = CompletedRuns(config.completed_dir, machine)
    source = completed.find(config)
    if source:
        copy_results(source, run_dir)
    return source is not None


def _run_set(
    place: Place,
    ranks: RankSet,
    workdir: Path,
    display: Display,
    failures: dict[Path, UserError | RunFailed],
) -> None:
    """Carry out the jobs of one set, starting its ranks again after each job that fails."""
    jobs = ranks.jobs
    attempt = len(list(workdir.glob("*")))  # a job that SLURM requeued finds those before
    while jobs:
        try:
            place.run_ranks(replace(ranks, jobs=jobs), workdir / str(attempt), display)
            return
        except (UserError, RunFailed, OSError) as caught:
            error = RunFailed(f"{type(caught).__name__}: {caught}") if isinstance(caught, OSError) else caught
            begun = jobs_begun(workdir / str(attempt))
            lost = jobs[begun - 1 : begun] if begun else jobs  # none begun: the ranks cannot start at all
            for job in lost:
                if job.run_dir:
                    failures[job.run_dir] = error
                    mark_ended(job.run_dir, "failed", str(error), overrule=True)
                else:
                    display.event({"warn": f"{job.role} reference failed: {error}"})
            jobs = jobs[begun:] if begun else []
            attempt += 1


def outcome(run_dir: Path) -> Outcome:
    """What the results.json of a run says it came to."""
    results = read_results(run_dir)
    if results is None or results["status"] != "complete":
        return RunFailed((results or {}).get("reason") or f"the ranks ended without results for {run_dir}")
    if results["exact"] is False:
        return RunFailed(results.get("why_inexact") or "the output is not that of one process")
    return results


def rank_sets(runs: Sequence[tuple[Config, Path]], place: Place) -> list[RankSet]:
    """The sets of ranks to start, in order, each with its jobs: a run's references, then the run itself.

    Runs that share throttle, profile and model share ranks; where CPUs are paced any profile will do.
    Remembered references are not measured again.
    """
    sets: dict[str, RankSet] = {}
    asked: set[Path] = set()
    machines = {device: place.machine(device) for device in {_device(config) for config, _ in runs}}

    def lacking(kind: str, facts: dict[str, Any], config: Config) -> bool:
        path = ReferenceStore(config.references_dir).path(kind, facts)
        if not config.references or path in asked or path.exists():
            return False
        asked.add(path)
        return True

    def add(config: Config, role: str, machine: dict[str, Any], run_dir: Path | None = None) -> None:
        throttle = _throttle(config, _device(config))
        _set_for(config, throttle, sets, machine, place).jobs.append(Job(config, role, throttle, run_dir))

    for config, run_dir in runs:
        machine = machines[_device(config)]
        even = replace(config, partitioner=replace(config.partitioner, name="even"), check=False)
        even = replace(even, memory_limit_gib=None)
        if lacking("single", single_facts(config, machine), config):
            add(replace(even, hetero=_one_device(config), shard="tokens"), "single", machine)
        mixed = config.hetero.is_measured  # there is no ring of equal devices to measure against
        if not mixed and lacking("homogeneous", homogeneous_facts(config, machine), config):
            homogeneous = replace(even, hetero=_full_speed(config, place), shard="tokens")
            add(homogeneous, "homogeneous", machine)
            # it is the even reference of its own profile, too
            asked.add(ReferenceStore(config.references_dir).path("even", even_facts(homogeneous, machine)))
        if config.partitioner.name == "even":
            asked.add(ReferenceStore(config.references_dir).path("even", even_facts(config, machine)))
        elif lacking("even", even_facts(config, machine), config):
            add(even, "even", machine)
        add(config, "run", machine, run_dir)
    return list(sets.values())


def _set_for(
    config: Config, throttle: str, sets: dict[str, RankSet], machine: dict[str, Any], place: Place
) -> RankSet:
    """The set of ranks in `sets` that can run this config; a new one if none can."""
    device = _device(config)
    any_profile = device == "cpu" and throttle in IN_PROCESS
    ranks = RankSet(
        device=device,
        throttle="cpu_pacing" if any_profile else throttle,
        transport=_transport(config, device, place),
        percentages=[float(p) for p in config.hetero.percentages],
        drifting=bool(config.hetero.drift),
        num_devices=place.num_gpus if device == "cuda" else place.num_nodes,
        machine=machine,
        command=place.command,
    )
    profile = [ranks.world_size] if any_profile else [ranks.percentages, ranks.drifting]
    shared = [ranks.throttle, profile, ranks.transport, device, asdict(config.model), config.seed]
    return sets.setdefault(json.dumps(shared, sort_keys=True), ranks)


def _one_device(config: Config) -> HeteroConfig:
    """The ranks that measure one full-speed device: a single one, or on CPU all, each for itself."""
    throttle = "measured" if config.hetero.is_measured else "none"
    return HeteroConfig([100.0] * (1 if _device(config) == "cuda" else config.world_size), throttle)


def _full_speed(config: Config, place: Place) -> HeteroConfig:
    """The profile of ranks that nothing slows: whole devices, or equal parts of the GPUs they share."""
    gpus = place.num_gpus if _device(config) == "cuda" else config.world_size
    sharing = -(-config.world_size // max(gpus, 1))
    throttle = config.hetero.throttle if sharing > 1 else "none"
    return HeteroConfig([100.0 / sharing] * config.world_size, throttle)


def _device(config: Config) -> str:
    return default_device() if config.device == "auto" else config.device


def _throttle(config: Config, device: str) -> str:
    return resolve_throttle(
        config.hetero.throttle, device, config.hetero.percentages, bool(config.hetero.drift)
    )


def _transport(config: Config, device: str, place: Place) -> str:
    name = config.transport.name
    if name == "auto":
        if device == "cpu":
            return "gloo"
        separate = config.world_size <= place.num_gpus
        # NCCL's kernels may find no SM beside a block, IPC's copies need none; but IPC is for one machine.
        if place.num_nodes == 1 and (not separate or gpus_reach_each_other()):
            return "ipc"
        return "nccl" if separate else "gloo"
    return name


def _check_fits(config: Config, device: str, place: Place) -> None:
    """Raises UserError for what can be known to fail before any process starts."""
    check_enough_tiles(config.seq_len, config.world_size, config.tile or DEFAULT_TILE[device])
    if config.dry_run:
        return
    gpus = place.num_gpus
    if device == "cuda" and not gpus:
        raise UserError("device=cuda, but no CUDA device is visible; use device=cpu or device=auto")
    transport = _transport(config, device, place)
    if transport == "ipc" and place.num_nodes > 1:
        raise UserError(
            f"transport=ipc is for ranks on one machine, and these are on {place.num_nodes}; use "
            "transport=nccl, gloo or auto"
        )
    if transport in ("nccl", "ipc") and device != "cuda":
        raise UserError(f"transport={transport} needs CUDA, but device={device}; use transport=gloo or auto")
    if transport == "nccl" and config.world_size > gpus:
        raise UserError(
            f"hetero.percentages={config.hetero.percentages} asks for {config.world_size} ranks, but NCCL "
            f"takes one rank a GPU, and {gpus} can be seen; use at most {gpus} ranks, or transport=ipc"
        )
    if config.cuda_graph and transport not in ("nccl", "ipc"):
        raise UserError(
            f"cuda_graph=true needs CUDA with transport=nccl or ipc, but device={device} and "
            f"transport={transport}; use cuda_graph=null"
        )
    if config.kernel.name == "cudnn" and device != "cuda":
        raise UserError(f"kernel=cudnn needs CUDA, but device={device}; use kernel=sdpa or kernel=auto")


def _dry_plan(config: Config, device: str, throttle: str) -> tuple[Plan, str | None]:
    """The plan and a note on where its speeds come from; starts nothing, needs no GPU."""
    causal = config.model.causal if isinstance(config.model, AttentionModelConfig) else True
    if config.partitioner.name in ("even", "uneven"):
        return plan_for(config, NominalSpeeds(config.hetero.percentages), device, causal), None
    known = _remembered(config, device, throttle)
    if known and config.partitioner.name in BY_COST:
        try:
            known.costs(causal)
        except UserError:  # no costs in the table yet
            known = None
    if known is None:
        taken = "equal" if config.hetero.is_measured else "the percentages"
        note = f"speeds are not known here and taken to be {taken}; a real run measures them"
        return plan_for(config, NominalSpeeds(config.hetero.percentages), device, causal), note
    return plan_for(config, known, device, causal), "speeds are from the calibration table"


def _remembered(config: Config, device: str, throttle: str) -> TableSpeeds | None:
    """The table's speeds for this machine and model, if they are unambiguous and cover every percentage."""
    cpu = f"{cpu_name()} x{cores_a_rank(config.world_size)}"
    hardware = set(gpu_names()) if device == "cuda" else {cpu}
    table = SpeedTable(config.speeds_file)
    prefix = f"{shape_of(config.model)}-"  # the kernel's name follows, which only a rank can resolve
    rows = [
        row
        for row in table.load()
        if row.hardware in hardware and row.throttle == throttle and row.shape.startswith(prefix)
    ]
    percentages = [float(p) for p in config.hetero.percentages]
    count = gpu_count() if device == "cuda" else config.world_size
    devices = [rank % max(count, 1) for rank in range(config.world_size)]
    own = [
        [row for row in rows if row.beside == beside(percentages, devices, rank)]
        for rank in range(config.world_size)
    ]
    kinds = {(row.hardware, row.ranks_per_device, row.shape) for mine in own for row in mine}
    covered = [
        any(row.percentage == asked for row in mine) for mine, asked in zip(own, percentages, strict=True)
    ]
    if len(kinds) != 1 or not all(covered):
        return None
    return TableSpeeds(config.seq_len, percentages, own)
