"""Rings at measured costs: of a finished run, or of a calibration table."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from statistics import median

from ringexp.calibration.source import TableSpeeds
from ringexp.calibration.table import SpeedTable
from ringexp.choices import LAYOUTS
from ringexp.config import DEFAULT_TILE
from ringexp.configure.named_models import named_model, named_shape
from ringexp.errors import UserError
from ringexp.models.registry import model_of
from ringexp.planning import EqualLinks, Link, Mask, Plan, RankCost, busy_ms, make_plan, predicted_ms
from ringexp.printable import plain
from ringexp.report.folder import Damaged, read_config, read_record, read_rows, result_of
from ringexp.report.frame import complete, each_run, load_runs
from ringexp.report.measured_costs import costs_of, links_of
from ringexp.report.row import COMPLETE, read_row
from ringexp.report.values import LARGEST, number, section, setting
from ringexp.simulate.rings import KnownSpeeds, Ring
from ringexp.stored import JsonObject, JsonValue
from ringexp.tracking import metrics
from ringexp.tracking.files import RESULTS
from ringexp.tracking.results import RunRecord, RunResult


@dataclass(frozen=True)
class RecordedSettings:
    """The settings of a finished run that its plan depends on, as its config.yaml has them."""

    model: str
    seq_len: int
    layout: str
    mask: Mask
    tile: int
    percentages: list[float]
    prefetch_hops: int | None
    chunk_tokens: int | None

    @classmethod
    def of(cls, config: JsonObject, record: RunRecord) -> RecordedSettings:
        """Check and collect the settings. Raises Damaged for a setting that allows no plan."""
        model = section(config, "model")
        layout = section(config, "layout").get("name")
        if not isinstance(layout, str) or layout not in LAYOUTS:
            raise Damaged("the layout is unknown")
        percentages = section(config, "hetero").get("percentages")
        if not isinstance(percentages, list):
            raise Damaged("percentages are no list")
        seq_len = _count(config.get("seq_len"), "seq_len")
        if seq_len is None:
            raise Damaged("seq_len is no number of tokens")
        return cls(
            model=str(model.get("name")),
            seq_len=seq_len,
            layout=layout,
            mask=Mask.of(model.get("causal", True) is True),
            tile=_count(config.get("tile"), "tile") or _default_tile(record),
            percentages=[value for stored in percentages if (value := number(stored)) is not None],
            prefetch_hops=_count(section(config, "transport").get("prefetch_hops"), "prefetch_hops"),
            chunk_tokens=_count(model.get("chunk_tokens"), "chunk_tokens"),
        )


def _count(value: JsonValue, name: str) -> int | None:
    """Return a whole number of at least 1, or None for null. Raises Damaged for another value."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Damaged(f"{name} is {setting(value)}")
    return value


def _default_tile(record: RunRecord) -> int:
    environment = record.content.get("environment")
    machine = environment.get("machine") if isinstance(environment, dict) else None
    device = machine.get("device") if isinstance(machine, dict) else None
    if not isinstance(device, str) or device not in DEFAULT_TILE:
        raise Damaged("the device is unknown")
    return DEFAULT_TILE[device]


@dataclass(frozen=True)
class Recorded:
    """A finished run.

    Attributes:
        folder: the run's folder.
        settings: the settings of its plan.
        result: its figures.
        costs: what its plan expected work to cost, per rank.
        links: the links that its plan expected; None if they are not known.
        busy_ms: measured compute time, [iteration][rank].
    """

    folder: Path
    settings: RecordedSettings
    result: RunResult
    costs: list[RankCost]
    links: EqualLinks | None
    busy_ms: list[list[float]]

    @property
    def layers(self) -> int:
        return self.result.num_units

    @cached_property
    def plan(self) -> Plan:
        """The plan that ran."""
        settings = self.settings
        return make_plan(
            settings.seq_len,
            self.result.tokens,
            settings.layout,
            mask=settings.mask,
            tile=settings.tile,
            chunks=ceil(settings.seq_len / settings.chunk_tokens) if settings.chunk_tokens else 1,
        )

    @property
    def measured_ms(self) -> float:
        return self.result.latency_ms_median

    @property
    def simulated_ms(self) -> float:
        """Latency of the plan that ran, at the costs that it was made with."""
        return self._latency_ms(self.costs)

    @property
    def simulated_at_own_speeds_ms(self) -> float:
        """Latency of the plan that ran, with each rank as fast as it was in the run itself.

        This is the median over iterations. Its error comes from waits alone, not from calibrated speeds.
        """
        expected = [self.layers * ms for ms in busy_ms(self.plan, self.costs)]
        return median(
            self._latency_ms(
                [
                    cost.slower(took / ms) if ms else cost
                    for cost, took, ms in zip(self.costs, iteration, expected, strict=True)
                ]
            )
            for iteration in self.busy_ms
        )

    def _latency_ms(self, costs: Sequence[RankCost]) -> float:
        return self.layers * predicted_ms(self.plan, costs, self.links, self.settings.prefetch_hops)

    @property
    def error(self) -> float:
        """Simulated / measured latency - 1."""
        return metrics.prediction_error(self.simulated_ms, self.measured_ms)

    @property
    def error_at_own_speeds(self) -> float:
        """The same at the speeds that ranks had in the run itself."""
        return metrics.prediction_error(self.simulated_at_own_speeds_ms, self.measured_ms)


def read_recorded(folder: Path) -> Recorded:
    """Read a finished run. Raises UserError for a folder that is no complete run with costs."""
    row = read_row(folder.resolve())
    record = None
    with suppress(Damaged):  # which the row tells
        record = read_record(folder)
    if row["status"] != COMPLETE or record is None:
        why = f": {row['reason']}" if row["reason"] else ""
        raise UserError(f"{folder} has no {RESULTS} of a complete run{why}")
    try:
        result = result_of(record)
        costs, links = costs_of(result), links_of(result)
        settings = RecordedSettings.of(read_config(folder) or {}, record)
        _check_ranks(settings, result)
        busy_ms = _busy_ms(folder, len(costs)) if costs else []
    except Damaged as error:
        raise UserError(f"{folder} cannot be replayed: {error}") from error
    if not costs:
        raise UserError(
            f"{folder}/{RESULTS} has no costs: split=kv has none, nor have runs of an older version"
        )
    return Recorded(folder, settings, result, costs, links, busy_ms)


def _check_ranks(settings: RecordedSettings, result: RunResult) -> None:
    """Raise Damaged unless tokens, percentages and costs are of the same ranks and prompt."""
    if result.num_units < 1 and result.costs:
        raise Damaged(f"num_units is {result.num_units}")
    if sum(result.tokens) != settings.seq_len:
        raise Damaged("tokens are not those of the prompt")
    ranks = len(result.costs)
    if ranks and not len(result.tokens) == len(settings.percentages) == ranks:
        raise Damaged("costs are of another number of ranks")


def _busy_ms(folder: Path, ranks: int) -> list[list[float]]:
    """Return each rank's compute time in ms, by iteration. Raises Damaged if the file has no such times."""
    try:
        busy = [float(row["busy_ms"]) for row in read_rows(folder / "iterations.csv")]
    except (KeyError, ValueError, TypeError) as error:
        raise Damaged(f"iterations.csv cannot be read: {plain(error)}") from error
    if not busy or len(busy) % ranks or not all(0 <= ms < LARGEST for ms in busy):
        raise Damaged("iterations.csv has no busy_ms of every rank and iteration")
    return [busy[start : start + ranks] for start in range(0, len(busy), ranks)]


def find_recorded(folders: Sequence[Path]) -> list[Recorded]:
    """Return all runs under some folders that can be replayed. Raises UserError if there is none."""
    replayable_runs = []
    for row in each_run(complete(load_runs(folders))):
        with suppress(UserError):
            replayable_runs.append(read_recorded(Path(row.folder)))
    if not replayable_runs:
        raise UserError(f"no complete run with costs in {', '.join(map(str, folders))}")
    return replayable_runs


def _links(link: Link, model: str) -> EqualLinks:
    """Return the links of a ring whose hops carry a model's keys and values. link: per byte."""
    return EqualLinks(link.scaled(named_shape(model).kv_token_bytes))


def ring_of_run(folder: Path, seq_len: int, link: Link | None) -> Ring:
    """Return the ranks of a finished run, for another split. Its costs were fitted around its own length."""
    run = read_recorded(folder)
    links = _links(link, run.settings.model) if link else run.links
    if links is None:
        raise UserError(
            f"{folder} has measured no hops (calibration.mode=table); give --hop MICROSECONDS:GBPS"
        )
    percentages = run.settings.percentages
    names = [f"rank at {percentage:g} %" for percentage in percentages]
    return Ring(
        names, KnownSpeeds(percentages, run.costs, seq_len), links, run.layers, run.settings.mask, run.costs
    )


def ring_of_table(
    path: Path, model: str, percentages: Sequence[float], seq_len: int, link: Link | None
) -> Ring:
    """Return ranks at these percentages, by a calibration table's rows of a model.

    Raises UserError if the table has no rows of it, or several kinds.
    """
    module = model_of(named_model(model))
    if module.generates_text:
        raise UserError(
            f"--costs {path} with --model {model}: a table is read for attention modules; give a run's folder"
        )
    if link is None:
        raise UserError(f"--costs {path} has no hops; give --hop MICROSECONDS:GBPS")
    shape = module.speed_key
    rows = [row for row in SpeedTable(path).load() if row.shape.startswith(f"{shape}-")]
    kinds = sorted(
        {(row.hardware, row.throttle, row.ranks_per_device, row.co_tenants, row.shape) for row in rows}
    )
    if len(kinds) != 1:
        row_kinds = "; ".join(", ".join(map(str, kind)) for kind in kinds) or "none"
        raise UserError(f"--costs {path} must have one kind of rows of {shape}, and has {row_kinds}")
    missing = sorted(set(percentages) - {row.percentage for row in rows})
    if missing:
        raise UserError(f"--costs {path} has no rows at {missing[0]:g} %")
    source = TableSpeeds(seq_len, list(percentages), [rows] * len(percentages))
    names = [f"{kinds[0][0]} at {percentage:g} %" for percentage in percentages]
    return Ring(names, source, _links(link, model), 1, module.mask, source.costs(module.mask))
