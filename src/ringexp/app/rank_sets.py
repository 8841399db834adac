"""Decide which sets of ranks the runs need, and the jobs of each: references first, then the runs."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ringexp.app.site import ExecutionSite
from ringexp.config import Config
from ringexp.configure.resolve import ResolvedRun
from ringexp.hetero.throttle import starting_throttle, takes_any_profile
from ringexp.stored import JsonObject
from ringexp.tracking.completed import fingerprint, run_key
from ringexp.tracking.content import content_of
from ringexp.tracking.references import ReferenceStore, even_facts
from ringexp.worker.rank_set import Job, RankSet
from ringexp.worker.reference_jobs import SPOT, Reference, brief, references_of, to_measure


def rank_sets(
    runs: Sequence[tuple[Config, Path]], site: ExecutionSite, own_references: bool = False
) -> list[RankSet]:
    """Return the sets of ranks to start, in order, each with its jobs: references, then the run itself.

    Runs that share throttle, profile and model share ranks. Where ranks slow themselves, any profile will do.

    Args:
        runs: validated settings and folders.
        site: where the ranks run.
        own_references: measure all references, each once, rather than take those of earlier calls.
    """
    sets = _RankSets(site)
    for config, run_dir in runs:
        sets.add_run(config, run_dir, own_references or config.calibration.mode == "refresh")
    return list(sets.by_name.values())


class _RankSets:
    """The sets of ranks that the runs need. Runs are added one after the other."""

    def __init__(self, site: ExecutionSite) -> None:
        self.by_name: dict[str, RankSet] = {}
        self._site = site
        self._measured_here: set[Path] = set()  # references that this call measures
        self._invocation = secrets.token_hex(8)
        self._machines: dict[str, JsonObject] = {}

    def add_run(self, config: Config, run_dir: Path, own_references: bool) -> None:
        """Add the references that a run lacks, then the run."""
        run, content = self._site.resolve(config), content_of(config)
        machine = self._machine(run.device)
        references = references_of(config, machine, content, run.device, self._site.num_gpus)
        store = ReferenceStore(config.references_dir)
        spot, missing = None, [reference for reference in references if not reference.is_run]
        if not own_references:
            name = self._name(run)
            spot, missing = to_measure(
                references,
                store,
                lambda other: self._name(self._site.resolve(other)) == name,
                config.calibration.spot_check,
            )
        if spot:
            facts = {spot.kind: spot.facts}
            self._add(Job(self._site.resolve(brief(spot.config)), SPOT + spot.kind, references=facts))
        for reference in missing:
            if store.path(reference.kind, reference.facts) not in self._measured_here:
                self._add_reference(reference, store, machine, content)
        for reference in references:
            if reference.is_run:
                self._measured_here.add(store.path(reference.kind, reference.facts))
        facts = {reference.kind: reference.facts for reference in references}
        key = run_key(fingerprint(config, content), machine)
        self._add(Job(run, "run", run_dir, key, facts, self._invocation if own_references else None))

    def _add_reference(
        self, reference: Reference, store: ReferenceStore, machine: JsonObject, content: dict[str, str]
    ) -> None:
        kind, config = reference.kind, reference.config
        facts = {kind: reference.facts}
        if kind == "homogeneous":  # it is also the even reference of its own profile
            facts["even"] = even_facts(config, machine, content)
        self._measured_here |= {store.path(kind, measured) for kind, measured in facts.items()}
        self._add(Job(self._site.resolve(config), kind, references=facts))

    def _add(self, job: Job) -> None:
        self.by_name.setdefault(self._name(job.run), self._ranks(job.run)).jobs.append(job)

    def _name(self, run: ResolvedRun) -> str:
        """Return a name that is equal for runs that can share ranks."""
        ranks = self._ranks(run)
        any_profile = takes_any_profile(run.throttle, run.device)
        profile = [ranks.world_size] if any_profile else [ranks.percentages, ranks.drifting]
        model, seed = asdict(run.settings.model), run.settings.seed
        shared = [ranks.throttle, profile, ranks.transport, ranks.device, model, seed]
        return json.dumps(shared, sort_keys=True)

    def _ranks(self, run: ResolvedRun) -> RankSet:
        """Return the set of ranks for a run, without jobs."""
        return RankSet(
            device=run.device,
            throttle=starting_throttle(run.throttle, run.device),
            transport=run.transport,
            percentages=run.percentages,
            drifting=bool(run.drift),
            num_devices=self._site.num_gpus if run.device == "cuda" else self._site.num_nodes,
            machine=self._machine(run.device),
            command=self._site.command,
            invocation=self._invocation,
        )

    def _machine(self, device: str) -> JsonObject:
        if device not in self._machines:
            self._machines[device] = self._site.machine(device)
        return self._machines[device]
