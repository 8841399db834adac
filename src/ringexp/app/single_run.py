"""Carry out one run and show its results, or show its plan alone."""

from __future__ import annotations

from pathlib import Path

from ringexp.app.dry_plan import dry_plan
from ringexp.app.execute import execute
from ringexp.app.site import ExecutionSite
from ringexp.config import Config
from ringexp.planning import Plan
from ringexp.report.console import Console
from ringexp.tracking.results import RunRecord


def run(config: Config, run_dir: Path) -> Plan | RunRecord:
    """Carry out one run and print its plan and results. Everything is written under `run_dir`.

    Returns:
        The plan of a dry run, else the record of the run.

    Raises:
        UserError: for settings that cannot work here.
        RunFailed: for a run that ended badly.
    """
    site = ExecutionSite()
    resolved = site.resolve(config)
    site.check(resolved)
    console = Console()
    if config.dry_run:
        plan, note = dry_plan(resolved)
        console.plan(config, plan, resolved.throttle, note)
        return plan
    console.heading(config, resolved.device, resolved.throttle)
    (outcome,) = execute([(config, run_dir)], console)
    if isinstance(outcome, Exception):
        raise outcome
    console.results(config, outcome, run_dir)
    return outcome
