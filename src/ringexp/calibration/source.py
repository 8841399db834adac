"""What partitioners ask about speeds, answered from the calibration table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ringexp.calibration.cost_model import cost_points, fit_cost
from ringexp.calibration.measure import calibration_lengths
from ringexp.calibration.rows import SpeedRow
from ringexp.calibration.speed_models import FormulaModel, LookupTable
from ringexp.planning import RankCost


@dataclass(frozen=True)
class TableSpeeds:
    """Speeds of all ranks for one length; rank i reads the rows of its own hardware, `rows[i]`.

    alone_ms: as `RankCost` has it, of ranks at 100 %; None: not known.
    """

    seq_len: int
    percentages: Sequence[float]
    rows: Sequence[Sequence[SpeedRow]]
    alone_ms: float | None = None

    def _of_ranks(self) -> Iterator[tuple[list[SpeedRow], float]]:
        """Each rank's rows of speeds, and its percentage."""
        for rows, percentage in zip(self.rows, self.percentages, strict=True):
            yield [row for row in rows if row.is_half], percentage

    def lut(self) -> list[float]:
        """Interpolated speeds, TFLOP/s."""
        return [LookupTable(rows).speed(self.seq_len, percentage) for rows, percentage in self._of_ranks()]

    def costs(self, causal: bool) -> list[RankCost]:
        """What work costs each rank, fitted to the rows around this length."""
        lengths = calibration_lengths(self.seq_len, for_fit=False)
        points = {(length, length // 2) for length in lengths} | set(cost_points(lengths))
        costs = []
        for rows, percentage in zip(self.rows, self.percentages, strict=True):
            own = [row for row in rows if row.percentage == percentage and (row.length, row.tokens) in points]
            alone_ms = self.alone_ms if percentage == 100 else None
            costs.append(replace(fit_cost(own, causal), alone_ms=alone_ms))
        return costs

    @cached_property
    def _formulas(self) -> list[FormulaModel]:
        return [FormulaModel.fit(rows) for rows, _ in self._of_ranks()]

    def formula(self) -> list[float]:
        """Speeds by regression, TFLOP/s."""
        return [
            model.speed(self.seq_len, percentage)
            for model, percentage in zip(self._formulas, self.percentages, strict=True)
        ]

    def describe_formula(self) -> dict[str, Any]:
        """The regression of rank 0's hardware: text, R^2, and the rows it was fitted to."""
        model = self._formulas[0]
        return {"formula": model.describe(), "r_squared": model.r_squared, "num_rows": model.num_rows}


@dataclass(frozen=True)
class NominalSpeeds:
    """For a dry run on a machine that was never measured: speeds taken to be the percentages."""

    percentages: Sequence[float]

    def lut(self) -> Sequence[float]:
        return self.percentages

    def formula(self) -> Sequence[float]:
        return self.percentages

    def costs(self, causal: bool) -> list[RankCost]:
        return [RankCost(0.0, 0.0, 1 / percentage) for percentage in self.percentages]
