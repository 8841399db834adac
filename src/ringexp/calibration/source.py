"""What partitioners ask about speeds, answered from the calibration table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ringexp.calibration.speed_models import FormulaModel, LookupTable
from ringexp.calibration.table import SpeedRow


@dataclass(frozen=True)
class TableSpeeds:
    """Speeds of all ranks for one length; rank i reads the rows of its own hardware, `rows[i]`."""

    seq_len: int
    percentages: Sequence[float]
    rows: Sequence[Sequence[SpeedRow]]

    def lut(self) -> list[float]:
        """Interpolated speeds, TFLOP/s."""
        return [
            LookupTable(rows).speed(self.seq_len, percentage)
            for rows, percentage in zip(self.rows, self.percentages, strict=True)
        ]

    @cached_property
    def _formulas(self) -> list[FormulaModel]:
        return [FormulaModel.fit(rows) for rows in self.rows]

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
