"""One run, from a checked config to its tables: plan what has to run, start the ranks, show what came out."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ringexp.calibration.source import NominalSpeeds, TableSpeeds
from ringexp.calibration.table import SpeedTable
from ringexp.config import Config
from ringexp.configure.preflight import Surroundings, check_before_start
from ringexp.errors import RunFailed, UserError
from ringexp.hetero.profiles import beside
from ringexp.hetero.throttle import resolve_throttle, starting_throttle, takes_any_profile
from ringexp.interrupts import undisturbed
from ringexp.launch.local import run_ranks
from ringexp.launch.supervision import Display, RunRanks, jobs_begun
from ringexp.machine import cores_per_rank, cpu_name, default_device, gpu_count, gpus_reach_each_other
from ringexp.models.registry import model_of
from ringexp.planning import BY_COST, Plan
from ringexp.report.console import Console
from ringexp.tracking.completed import CompletedRuns, copy_results, fingerprint, run_key
from ringexp.tracking.content import content_of
from ringexp.tracking.environment import command_line, gpu_names, machine_facts
from ringexp.tracking.files import begin, mark_ended, read_results
from ringexp.tracking.references import ReferenceStore, even_facts
from ringexp.worker.make_plan import plan_for
from ringexp.worker.rank_set import Job, RankSet
from ringexp.worker.reference_jobs import SPOT, Reference, brief, references_of, to_measure


@dataclass(frozen=True)
class ExecutionSite:
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
    _check_fits(config, device, ExecutionSite())
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
    runs: Sequence[tuple[Config, Path]],
    console: Console,
    sweep: bool = False,
    place: ExecutionSite | None = None,
) -> list[Outcome]:
    """Run configs in as few sets of ranks as they allow; returns their outcomes in the order given.

    A run that fails ends its ranks; new ones go on with the jobs after it. An interrupt ends all: what has
    not ended by then is marked so. Raises UserError if two runs have one folder.

    Args:
        runs: checked configs and their folders.
        console: where progress is shown.
        sweep: take what equal runs have completed, unless the setting `resume` says otherwise, and measure
            references in this sweep rather than take those that an earlier call measured.
        place: where the ranks run; this machine unless given.
    """
    check_folders([run_dir for _, run_dir in runs])
    place = place or ExecutionSite()
    failures: dict[Path, UserError | RunFailed] = {}
    fitting = []
    for config, run_dir in runs:
        device = _device(config)
        try:
            _check_fits(config, device, place)
            content_of(config)  # raises for what cannot be read
            if not resumed(config, run_dir, sweep, place.machine(device)):
                begin(run_dir)
                fitting.append((config, run_dir))
        except UserError as error:
            failures[run_dir] = error
        except OSError as error:
            failures[run_dir] = RunFailed(f"{error.filename or run_dir} cannot be written: {error.strerror}")
    try:
        with console.progress() as display:
            stopped = _run_sets(fitting, place, display, failures, sweep)
            if stopped:  # by references that are off: those are measured anew
                _run_sets([run for run in fitting if run[1] in stopped], place, display, failures, True)
    except KeyboardInterrupt as interrupt:
        with undisturbed():
            mark_interrupted(fitting, f"interrupted: {str(interrupt) or 'Ctrl-C'}")
        raise
    return [failures.get(run_dir) or outcome(run_dir) for _, run_dir in runs]


def check_folders(folders: Sequence[Path]) -> None:
    """Raise UserError if two runs would write to one folder."""
    counted = Counter(folder.absolute() for folder in folders)
    folder, count = counted.most_common(1)[0] if counted else (None, 1)
    if count > 1:
        raise UserError(
            f"{count} runs of the sweep have the same folder {folder}, where each would overwrite the one "
            "before; put ${hydra.job.num} into hydra.sweep.subdir"
        )


def mark_interrupted(runs: Sequence[tuple[Config, Path]], reason: str) -> None:
    """Say of every run that has not ended that it was interrupted, and whether it had begun."""
    for _, run_dir in runs:
        mark_ended(run_dir, "interrupted", reason if read_results(run_dir) else f"not begun ({reason})")


def resumed(config: Config, run_dir: Path, sweep: bool, machine: dict[str, Any]) -> bool:
    """Whether an equal run is complete; if so its results are in `run_dir` now."""
    if not (sweep if config.resume is None else config.resume):
        return False
    completed = CompletedRuns(config.completed_dir, machine)
    source = completed.find(fingerprint(config, content_of(config)))
    if source:
        copy_results(source, run_dir)
    return source is not None


def _run_sets(
    runs: Sequence[tuple[Config, Path]],
    place: ExecutionSite,
    display: Display,
    failures: dict[Path, UserError | RunFailed],
    own_references: bool,
) -> set[Path]:
    """Carry out all jobs of these runs. Return the folders of runs that ranks refused, as `_run_set` does."""
    stopped: set[Path] = set()
    for ranks in rank_sets(runs, place, own_references):
        folder = runs[0][1] / "ranks"
        stopped |= _run_set(place, ranks, folder / str(_count(folder)), display, failures)
    return stopped


def _count(folder: Path) -> int:
    """Count the sets of ranks whose files are in a folder.

    A job that SLURM requeued finds the sets that it started before.
    """
    return len(list(folder.glob("*")))


def _run_set(
    place: ExecutionSite,
    ranks: RankSet,
    workdir: Path,
    display: Display,
    failures: dict[Path, UserError | RunFailed],
) -> set[Path]:
    """Carry out the jobs of one set, starting its ranks again after each job that fails.

    Returns the folders of runs that ranks did not begin because a stored reference of the run is off.
    """
    jobs, attempt = ranks.jobs, 0
    while jobs:
        folder = workdir / str(attempt)
        try:
            place.run_ranks(replace(ranks, jobs=jobs), folder, display)
            begun = jobs_begun(folder)
            stopped = jobs[begun:] if begun and jobs[begun - 1].role.startswith(SPOT) else []
            return {job.run_dir for job in stopped if job.run_dir}
        except (UserError, RunFailed, OSError) as caught:
            error = RunFailed(f"{type(caught).__name__}: {caught}") if isinstance(caught, OSError) else caught
            begun = jobs_begun(folder)
            lost = jobs[begun - 1 : begun] if begun else jobs  # none begun: the ranks cannot start at all
            for job in lost:
                if job.run_dir and begun and _is_complete(job):
                    display.event({"warn": f"{job.run_dir.name} is complete; after it: {error}"})
                elif job.run_dir:
                    failures[job.run_dir] = error
                    mark_ended(job.run_dir, "failed", str(error), overrule=True)
                else:
                    display.event({"warn": f"{job.role} reference failed: {error}"})
            jobs = jobs[begun:] if begun else []
            attempt += 1
    return set()


def _is_complete(job: Job) -> bool:
    results = read_results(job.run_dir) if job.run_dir else None
    return bool(results) and results["status"] == "complete" and results.get("key") == job.key


def outcome(run_dir: Path) -> Outcome:
    """What the results.json of a run says it came to."""
    results = read_results(run_dir)
    if results is None or results["status"] != "complete":
        reason = (results or {}).get("reason")
        return RunFailed(str(reason) if reason else f"the ranks ended without results for {run_dir}")
    if results.get("exact") not in (True, None):
        return RunFailed(str(results.get("why_inexact") or "the output is not that of one process"))
    return results


def rank_sets(
    runs: Sequence[tuple[Config, Path]], place: ExecutionSite, own_references: bool = False
) -> list[RankSet]:
    """The sets of ranks to start, in order, each with its jobs: a run's references, then the run itself.

    Runs that share throttle, profile and model share ranks; where CPUs are paced any profile will do.

    Args:
        runs: checked configs and their folders.
        place: where the ranks run.
        own_references: measure all references, each once, rather than take what earlier calls measured.
    """
    sets = _RankSets(place)
    for config, run_dir in runs:
        sets.add_run(config, run_dir, own_references or config.calibration.mode == "refresh")
    return list(sets.found.values())


class _RankSets:
    """The sets of ranks that the runs need. Runs are added one after the other."""

    def __init__(self, place: ExecutionSite) -> None:
        self.found: dict[str, RankSet] = {}
        self._place = place
        self._asked: set[Path] = set()  # references that are measured in this call
        self._invocation = secrets.token_hex(8)
        self._machines: dict[str, dict[str, Any]] = {}

    def add_run(self, config: Config, run_dir: Path, own_references: bool) -> None:
        """Add the references that a run lacks, then the run."""
        device, content = _device(config), content_of(config)
        machine = self._machine(device)
        references = references_of(config, machine, content, device, self._place.num_gpus)
        store = ReferenceStore(config.references_dir)
        spot, missing = None, [each for each in references if not each.is_run]
        if not own_references:
            shares = self._name(config).__eq__
            spot, missing = to_measure(
                references, store, lambda other: shares(self._name(other)), config.calibration.spot_check
            )
        if spot:
            self._add(Job(brief(spot.config), SPOT + spot.kind, "", references={spot.kind: spot.facts}))
        for each in missing:
            if store.path(each.kind, each.facts) not in self._asked:
                self._add_reference(each, store, machine, content)
        for each in references:
            if each.is_run:
                self._asked.add(store.path(each.kind, each.facts))
        facts = {each.kind: each.facts for each in references}
        key = run_key(fingerprint(config, content), machine)
        invocation = self._invocation if own_references else None
        self._add(Job(config, "run", "", run_dir, key, facts, invocation))

    def _add_reference(
        self, reference: Reference, store: ReferenceStore, machine: dict[str, Any], content: dict[str, str]
    ) -> None:
        kind, config = reference.kind, reference.config
        facts = {kind: reference.facts}
        if kind == "homogeneous":  # it is the even reference of its own profile, too
            facts["even"] = even_facts(config, machine, content)
        self._asked |= {store.path(each, decided) for each, decided in facts.items()}
        self._add(Job(config, kind, "", references=facts))

    def _add(self, job: Job) -> None:
        job = replace(job, throttle=_throttle(job.config, _device(job.config)))
        self.found.setdefault(self._name(job.config), self._ranks(job.config)).jobs.append(job)

    def _name(self, config: Config) -> str:
        """Return a name that is equal for configs that can share ranks."""
        ranks = self._ranks(config)
        any_profile = takes_any_profile(_throttle(config, ranks.device), ranks.device)
        profile = [ranks.world_size] if any_profile else [ranks.percentages, ranks.drifting]
        shared = [ranks.throttle, profile, ranks.transport, ranks.device, asdict(config.model), config.seed]
        return json.dumps(shared, sort_keys=True)

    def _ranks(self, config: Config) -> RankSet:
        """Return the set of ranks for a config, without jobs."""
        device = _device(config)
        throttle = _throttle(config, device)
        return RankSet(
            device=device,
            throttle=starting_throttle(throttle, device),
            transport=_transport(config, device, self._place),
            percentages=[float(p) for p in config.hetero.percentages],
            drifting=bool(config.hetero.drift),
            num_devices=self._place.num_gpus if device == "cuda" else self._place.num_nodes,
            machine=self._machine(device),
            command=self._place.command,
            invocation=self._invocation,
        )

    def _machine(self, device: str) -> dict[str, Any]:
        if device not in self._machines:
            self._machines[device] = self._place.machine(device)
        return self._machines[device]


def _device(config: Config) -> str:
    return default_device() if config.device == "auto" else config.device


def _throttle(config: Config, device: str) -> str:
    return resolve_throttle(
        config.hetero.throttle, device, config.hetero.percentages, bool(config.hetero.drift)
    )


def _transport(config: Config, device: str, place: ExecutionSite) -> str:
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


def _check_fits(config: Config, device: str, place: ExecutionSite) -> None:
    """Raises UserError for what can be known to fail before any process starts."""
    here = not config.dry_run or config.device == "cpu"  # else it may be a plan for other hardware
    transport = config.transport.name if config.dry_run else _transport(config, device, place)
    gpus = place.num_gpus if here or place.num_gpus else None
    where = Surroundings(device, gpus, place.num_nodes, here)
    check_before_start(config, transport, where)


def _dry_plan(config: Config, device: str, throttle: str) -> tuple[Plan, str | None]:
    """The plan and a note on where its speeds come from; starts nothing, needs no GPU."""
    causal = model_of(config.model).causal
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
    cpu = f"{cpu_name()} x{cores_per_rank(config.world_size)}"
    hardware = set(gpu_names()) if device == "cuda" else {cpu}
    table = SpeedTable(config.speeds_file)
    prefix = f"{model_of(config.model).speed_key}-"  # then the kernel's name, which only a rank can resolve
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
