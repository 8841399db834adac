"""Rings at measured costs: of a finished run, or of a calibration table."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from ringexp.calibration.source import TableSpeeds
from ringexp.calibration.table import SpeedTable
from ringexp.choices import LAYOUTS
from ringexp.config import DEFAULT_TILE
from ringexp.errors import UserError
from ringexp.models.model_shapes import attention_config, model_shape
from ringexp.models.shapes import shape_of
from ringexp.planning import EqualLinks, Link, Mask, Plan, RankCost, busy_ms, make_plan, predicted_ms
from ringexp.printable import plain
from ringexp.report.folder import Damaged, read_config, read_results, read_rows
from ringexp.report.frame import complete, load_runs
from ringexp.report.measured_costs import costs_of, links_of
from ringexp.report.row import COMPLETE, read_row
from ringexp.report.values import LARGEST, section, setting
from ringexp.simulate.rings import KnownSpeeds, Ring
from ringexp.tracking import metrics
from ringexp.tracking.files import RESULTS


@dataclass(frozen=True)
class Recorded:
    """A finished run: its settings, its results, what its plan was made with; busy_ms: [iteration][rank]."""

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    costs: list[RankCost]
    links: EqualLinks | None
    busy_ms: list[list[float]]

    @property
    def layers(self) -> int:
        return self.results["num_units"]

    @property
    def mask(self) -> Mask:
        return Mask.of(self.config["model"].get("causal", True))

    @cached_property
    def plan(self) -> Plan:
        """The plan that ran."""
        chunk_tokens, seq_len = self.config["model"].get("chunk_tokens"), self.config["seq_len"]
        return make_plan(
            seq_len,
            self.results["tokens"],
            self.config["layout"]["name"],
            mask=self.mask,
            tile=self.config.get("tile") or DEFAULT_TILE[self.results["environment"]["machine"]["device"]],
            chunks=-(-seq_len // chunk_tokens) if chunk_tokens else 1,
        )

    @property
    def measured_ms(self) -> float:
        return self.results["latency_ms_median"]

    @property
    def simulated_ms(self) -> float:
        """Latency of the plan that ran, at the costs that it was made with."""
        return self._latency_ms(self.costs)

    @property
    def simulated_at_own_speeds_ms(self) -> float:
        """The same with each rank slowed or sped up to what it took to compute in the run itself.

        Median over iterations. It is off by its waits alone, not by speeds that calibration got wrong.
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
        prefetch_hops = section(self.config, "transport").get("prefetch_hops")
        return self.layers * predicted_ms(self.plan, costs, self.links, prefetch_hops)

    @property
    def error(self) -> float:
        """Simulated / measured - 1."""
        return metrics.prediction_error(self.simulated_ms, self.measured_ms)

    @property
    def error_at_own_speeds(self) -> float:
        return metrics.prediction_error(self.simulated_at_own_speeds_ms, self.measured_ms)


def read_recorded(folder: Path) -> Recorded:
    """Raises UserError for a folder that is no complete run with costs."""
    row = read_row(folder.resolve())
    if row["status"] != COMPLETE:
        why = f": {row['reason']}" if row["reason"] else ""
        raise UserError(f"{folder} has no {RESULTS} of a complete run{why}")
    try:
        config, results = read_config(folder) or {}, read_results(folder) or {}
        costs, links = costs_of(results), links_of(results)
        _check_settings(config, results, len(costs))
        busy_ms = _busy_ms(folder, len(costs)) if costs else []
    except Damaged as error:
        raise UserError(f"{folder} cannot be replayed: {error}") from error
    if not costs:
        raise UserError(
            f"{folder}/{RESULTS} has no costs: split=kv has none, nor have runs of an older version"
        )
    return Recorded(folder, config, results, costs, links, busy_ms)


def _check_settings(config: dict[str, Any], results: dict[str, Any], ranks: int) -> None:
    """Raise Damaged unless the settings allow a plan. `read_row` has checked the rest."""
    counts = [config.get("tile"), section(config, "model").get("chunk_tokens")]
    counts += [section(config, "transport").get("prefetch_hops"), results.get("num_units", 0)]
    for count in counts:
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise Damaged(f"tile, chunk_tokens, prefetch_hops or num_units is {setting(count)}")
    tokens, percentages = results.get("tokens"), section(config, "hetero").get("percentages")
    if not isinstance(tokens, list) or not all(isinstance(count, int) for count in tokens):
        raise Damaged("tokens are no whole numbers")
    if sum(tokens) != config.get("seq_len") or not isinstance(percentages, list):
        raise Damaged("tokens are not those of the prompt")
    if ranks and not len(tokens) == len(percentages) == ranks:
        raise Damaged("costs are of another number of ranks")
    if section(config, "layout").get("name") not in LAYOUTS:
        raise Damaged("the layout is unknown")
    device = (results.get("environment") or {}).get("machine", {}).get("device")
    if config.get("tile") is None and device not in DEFAULT_TILE:
        raise Damaged("the device is unknown")


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
    """All runs under some folders that can be replayed. Raises UserError if there is none."""
    found = []
    for row in complete(load_runs(folders)).itertuples():
        with suppress(UserError):
            found.append(read_recorded(Path(row.folder)))
    if not found:
        raise UserError(f"no complete run with costs in {', '.join(map(str, folders))}")
    return found


def _links(link: Link, model: str) -> EqualLinks:
    """Return the links of a ring whose hops carry a model's keys and values. link: per byte."""
    return EqualLinks(link.scaled(model_shape(model).kv_token_bytes))


def ring_of_run(folder: Path, seq_len: int, link: Link | None) -> Ring:
    """The ranks of a finished run, for another split; its costs were fitted around its own length."""
    run = read_recorded(folder)
    links = _links(link, run.config["model"]["name"]) if link else run.links
    if links is None:
        raise UserError(
            f"{folder} has measured no hops (calibration.mode=table); give --hop MICROSECONDS:GBPS"
        )
    percentages = run.config["hetero"]["percentages"]
    names = [f"rank at {percentage:g} %" for percentage in percentages]
    return Ring(names, KnownSpeeds(percentages, run.costs, seq_len), links, run.layers, run.mask, run.costs)


def ring_of_table(
    path: Path, model: str, percentages: Sequence[float], seq_len: int, link: Link | None
) -> Ring:
    """Ranks at these percentages, by a calibration table's rows of a model.

    Raises UserError if the table has no rows of it, or several kinds.
    """
    config = attention_config(model)
    if config is None:
        raise UserError(
            f"--costs {path} with --model {model}: a table is read for attention modules; give a run's folder"
        )
    if link is None:
        raise UserError(f"--costs {path} has no hops; give --hop MICROSECONDS:GBPS")
    shape = shape_of(config)
    rows = [row for row in SpeedTable(path).load() if row.shape.startswith(f"{shape}-")]
    kinds = sorted(
        {(row.hardware, row.throttle, row.ranks_per_device, row.co_tenants, row.shape) for row in rows}
    )
    if len(kinds) != 1:
        found = "; ".join(", ".join(map(str, kind)) for kind in kinds) or "none"
        raise UserError(f"--costs {path} must have one kind of rows of {shape}, and has {found}")
    missing = sorted(set(percentages) - {row.percentage for row in rows})
    if missing:
        raise UserError(f"--costs {path} has no rows at {missing[0]:g} %")
    source = TableSpeeds(seq_len, list(percentages), [rows] * len(percentages))
    names = [f"{kinds[0][0]} at {percentage:g} %" for percentage in percentages]
    return Ring(
        names, source, _links(link, model), 1, Mask.of(config.causal), source.costs(Mask.of(config.causal))
    )
