"""Rings at measured costs: of a finished run, or of a calibration table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from ringexp.calibration.source import TableSpeeds
from ringexp.calibration.table import SpeedTable
from ringexp.config import DEFAULT_TILE
from ringexp.errors import UserError
from ringexp.models.model_shapes import attention_config, model_shape
from ringexp.models.shapes import shape_of
from ringexp.planning import HopCost, Plan, RankCost, make_plan
from ringexp.report.folder import read_config, read_results
from ringexp.report.frame import complete, load_runs
from ringexp.simulate.hardware import Link
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
    hop: HopCost | None
    busy_ms: list[list[float]]

    @property
    def layers(self) -> int:
        return self.results["num_units"]

    @property
    def causal(self) -> bool:
        return self.config["model"].get("causal", True)

    @cached_property
    def plan(self) -> Plan:
        """The plan that ran."""
        chunk_tokens, seq_len = self.config["model"].get("chunk_tokens"), self.config["seq_len"]
        return make_plan(
            seq_len,
            self.results["tokens"],
            self.config["layout"]["name"],
            causal=self.causal,
            tile=self.config["tile"] or DEFAULT_TILE[self.results["environment"]["machine"]["device"]],
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
        expected = [self.layers * ms for ms in self.plan.busy_ms(self.costs)]
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
        prefetch_hops = self.config["transport"]["prefetch_hops"]
        return self.layers * self.plan.predicted_ms(costs, self.hop, prefetch_hops)

    @property
    def error(self) -> float:
        """Simulated / measured - 1."""
        return metrics.prediction_error(self.simulated_ms, self.measured_ms)

    @property
    def error_at_own_speeds(self) -> float:
        return metrics.prediction_error(self.simulated_at_own_speeds_ms, self.measured_ms)


def read_recorded(folder: Path) -> Recorded:
    """Raises UserError for a folder that is no complete run with costs."""
    config, results = read_config(folder), read_results(folder)
    if not config or not results or results.get("status") != "complete":
        raise UserError(f"{folder} has no {RESULTS} of a complete run")
    if not results.get("costs"):
        raise UserError(
            f"{folder}/{RESULTS} has no costs: shard=kv has none, nor have runs of an older version"
        )
    hop = results.get("hop")
    costs = [RankCost(**cost) for cost in results["costs"]]
    link = HopCost(hop["latency_ms"], hop["token_ms"], hop["direct"]) if hop else None
    return Recorded(folder, config, results, costs, link, _busy_ms(folder, len(costs)))


def _busy_ms(folder: Path, ranks: int) -> list[list[float]]:
    """Of each iteration, each rank's time computing."""
    try:
        with (folder / "iterations.csv").open(encoding="utf-8", newline="") as file:
            busy = [float(row["busy_ms"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{folder}/iterations.csv cannot be read: {error}") from error
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


def ring_of_run(folder: Path, seq_len: int, link: Link | None) -> Ring:
    """The ranks of a finished run, for another split; its costs were fitted around its own length."""
    run = read_recorded(folder)
    hop = link.hop(model_shape(run.config["model"]["name"])) if link else run.hop
    if hop is None:
        raise UserError(
            f"{folder} has measured no hops (calibration.mode=table); give --hop MICROSECONDS:GBPS"
        )
    percentages = run.config["hetero"]["percentages"]
    names = [f"rank at {percentage:g} %" for percentage in percentages]
    return Ring(names, KnownSpeeds(percentages, run.costs, seq_len), hop, run.layers, run.causal, run.costs)


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
        {(row.hardware, row.throttle, row.ranks_per_device, row.beside, row.shape) for row in rows}
    )
    if len(kinds) != 1:
        found = "; ".join(", ".join(map(str, kind)) for kind in kinds) or "none"
        raise UserError(f"--costs {path} must have one kind of rows of {shape}, and has {found}")
    missing = sorted(set(percentages) - {row.percentage for row in rows})
    if missing:
        raise UserError(f"--costs {path} has no rows at {missing[0]:g} %")
    source = TableSpeeds(seq_len, list(percentages), [rows] * len(percentages))
    names = [f"{kinds[0][0]} at {percentage:g} %" for percentage in percentages]
    hop = link.hop(model_shape(model))
    return Ring(names, source, hop, 1, config.causal, source.costs(config.causal))
