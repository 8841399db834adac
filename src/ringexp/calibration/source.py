"""Give partitioners the ranks' speeds and costs, from the calibration table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ringexp.calibration.cost_model import cost_points, fit_cost
from ringexp.calibration.formula import FormulaModel
from ringexp.calibration.lookup_table import LookupTable
from ringexp.calibration.measure import calibration_lengths
from ringexp.calibration.rows import SpeedRow
from ringexp.calibration.speed_fit import SpeedFit
from ringexp.config import PartitionerConfig
from ringexp.planning import Mask, RankCost


@dataclass(frozen=True)
class TableSpeeds:
    """The speeds of all ranks at one length.

    Attributes:
        seq_len: tokens of the prompt.
        percentages: one per rank.
        rows: per rank, the rows of its hardware.
        alone_ms: `RankCost.alone_ms` of ranks at 100 %; None if it is not known.
        settings: the interpolation of `lut` and the degree of `formula`.
    """

    seq_len: int
    percentages: Sequence[float]
    rows: Sequence[Sequence[SpeedRow]]
    alone_ms: float | None = None
    settings: PartitionerConfig = field(default_factory=PartitionerConfig)

    def _of_ranks(self) -> Iterator[tuple[list[SpeedRow], float]]:
        """Yield (rows of speeds, percentage) per rank."""
        for rows, percentage in zip(self.rows, self.percentages, strict=True):
            yield [row for row in rows if row.is_half], percentage

    def lut(self) -> list[float]:
        """Return interpolated speeds, TFLOP/s per rank."""
        interpolation = self.settings.lut.interpolation
        return [
            LookupTable(rows, interpolation).speed(self.seq_len, percentage)
            for rows, percentage in self._of_ranks()
        ]

    def costs(self, mask: Mask) -> list[RankCost]:
        """Return each rank's costs, fitted to the rows around this length."""
        lengths = calibration_lengths(self.seq_len, for_fit=False)
        points = {(length, length // 2) for length in lengths} | set(cost_points(lengths))
        costs = []
        for rows, percentage in zip(self.rows, self.percentages, strict=True):
            rank_rows = [
                row for row in rows if row.percentage == percentage and (row.length, row.tokens) in points
            ]
            alone_ms = self.alone_ms if percentage == 100 else None
            costs.append(replace(fit_cost(rank_rows, mask), alone_ms=alone_ms))
        return costs

    @cached_property
    def _formulas(self) -> list[FormulaModel]:
        return [FormulaModel.fit(rows, self.settings.formula.degree) for rows, _ in self._of_ranks()]

    def formula(self) -> list[float]:
        """Return speeds by regression, TFLOP/s per rank."""
        return [
            model.speed(self.seq_len, percentage)
            for model, percentage in zip(self._formulas, self.percentages, strict=True)
        ]

    def describe_formula(self) -> SpeedFit:
        """Describe the regression of rank 0's hardware."""
        model = self._formulas[0]
        return SpeedFit(model.describe(), model.r_squared, model.num_rows)


@dataclass(frozen=True)
class NominalSpeeds:
    """Speeds for a dry run on a machine that was never measured: the percentages."""

    percentages: Sequence[float]

    def lut(self) -> Sequence[float]:
        return self.percentages

    def formula(self) -> Sequence[float]:
        return self.percentages

    def costs(self, mask: Mask) -> list[RankCost]:
        return [RankCost(0.0, 0.0, 1 / percentage) for percentage in self.percentages]
