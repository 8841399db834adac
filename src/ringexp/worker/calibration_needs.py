"""What one job needs to know about the speeds of its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ringexp.calibration.cost_model import cost_points
from ringexp.calibration.measure import calibration_lengths
from ringexp.calibration.rows import Point
from ringexp.choices import PARTITIONERS
from ringexp.config import CalibrationConfig, PartitionerConfig


@dataclass(frozen=True)
class CalibrationNeeds:
    """The speeds that a job reads.

    Attributes:
        settings: how speeds are measured and remembered.
        speeds_file: the calibration table.
        seq_len: the length of the job's prompt.
        world_size: the number of ranks.
        partitioner: the rule that reads speeds, and its settings.
        costs: the job predicts its time, which takes more points.
    """

    settings: CalibrationConfig
    speeds_file: Path
    seq_len: int
    world_size: int
    partitioner: PartitionerConfig
    costs: bool

    @property
    def fits_lengths(self) -> bool:
        """Tell whether the partitioner fits a curve over several lengths."""
        return PARTITIONERS[self.partitioner.name].needs_curve

    @property
    def lengths(self) -> list[int]:
        """The prompt lengths at which speeds are needed."""
        return calibration_lengths(self.seq_len, for_fit=self.fits_lengths)

    @property
    def points(self) -> list[Point]:
        """The points of the table that are needed."""
        points = {(length, length // 2, 1) for length in self.lengths}
        if self.costs:
            around, others = calibration_lengths(self.seq_len, for_fit=False), self.world_size - 1
            points |= {(length, tokens, 1) for length, tokens in cost_points(around)}
            points |= {
                (length, length // 2, others) for length in around if 1 < others <= length - length // 2
            }
        return sorted(points)
