"""Plan a run without starting it, by stored speeds or by the percentages."""

from __future__ import annotations

from ringexp.calibration.source import NominalSpeeds, TableSpeeds
from ringexp.calibration.table import SpeedTable
from ringexp.choices import measures_each_device
from ringexp.configure.resolve import ResolvedRun
from ringexp.errors import UserError
from ringexp.hetero.profiles import co_tenants
from ringexp.machine import cores_per_rank, cpu_name, gpu_count
from ringexp.models.registry import model_of
from ringexp.planning import Plan, plan_for
from ringexp.tracking.environment import gpu_names


def dry_plan(run: ResolvedRun) -> tuple[Plan, str | None]:
    """Return a run's plan and a note on where its speeds come from. Starts nothing and needs no GPU."""
    config = run.settings
    nominal = NominalSpeeds(config.hetero.percentages)
    if not run.partitioner.needs_measurements:
        return plan_for(run.plan_request, nominal), None
    stored = _stored_speeds(run)
    if stored and run.partitioner.needs_costs:
        try:
            stored.costs(run.mask)
        except UserError:  # no costs in the table yet
            stored = None
    if stored is None:
        assumed = "equal" if measures_each_device(config.hetero.throttle) else "the percentages"
        note = f"speeds are not known here and taken to be {assumed}; a real run measures them"
        return plan_for(run.plan_request, nominal), note
    return plan_for(run.plan_request, stored), "speeds are from the calibration table"


def _stored_speeds(run: ResolvedRun) -> TableSpeeds | None:
    """Return the table's speeds for this machine and model, if they are unambiguous and complete."""
    config, world_size = run.settings, run.world_size
    cpu = f"{cpu_name()} x{cores_per_rank(world_size)}"
    hardware = set(gpu_names()) if run.device == "cuda" else {cpu}
    prefix = f"{model_of(config.model).speed_key}-"  # then the kernel's name, which only a rank can resolve
    rows = [
        row
        for row in SpeedTable(config.speeds_file).load()
        if row.hardware in hardware and row.throttle == run.throttle and row.shape.startswith(prefix)
    ]
    percentages = run.percentages
    count = gpu_count() if run.device == "cuda" else world_size
    devices = [rank % max(count, 1) for rank in range(world_size)]
    rows_of_ranks = [
        [row for row in rows if row.co_tenants == co_tenants(percentages, devices, rank)]
        for rank in range(world_size)
    ]
    kinds = {(row.hardware, row.ranks_per_device, row.shape) for rows in rows_of_ranks for row in rows}
    covered = [
        any(row.percentage == percentage for row in rows)
        for rows, percentage in zip(rows_of_ranks, percentages, strict=True)
    ]
    if len(kinds) != 1 or not all(covered):
        return None
    return TableSpeeds(config.seq_len, percentages, rows_of_ranks, settings=config.partitioner)
