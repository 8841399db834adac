"""The speeds of all ranks before a job: from the table, after measuring what the table lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ringexp.calibration.measure import StoppingRule
from ringexp.calibration.rows import Point, SpeedRow
from ringexp.calibration.source import TableSpeeds
from ringexp.calibration.staleness import find_unequal_ranks
from ringexp.calibration.table import SpeedTable
from ringexp.choices import THROTTLES
from ringexp.worker.calibration_needs import CalibrationNeeds
from ringexp.worker.communicator import Communicator
from ringexp.worker.memory import RankMemory
from ringexp.worker.progress import ProgressWriter
from ringexp.worker.speed_meter import RowKey, SpeedMeter
from ringexp.worker.spot_check import SpotChecker
from ringexp.worker.throttle_state import ThrottleState


class Calibrator:
    """Find out how fast the ranks are, and remember what was checked. All ranks call the methods together."""

    def __init__(self, communicator: Communicator, throttle: ThrottleState, progress: ProgressWriter) -> None:
        self._communicator, self._throttle, self._progress = communicator, throttle, progress
        self._spot_checker = SpotChecker(communicator, progress, self._warn_if_unequal)
        self._warned_of_unequal = False

    def speeds(self, needs: CalibrationNeeds, meter: SpeedMeter, memory: RankMemory) -> TableSpeeds:
        """Return the speeds of all ranks, after measuring what the table lacks.

        Rows that were measured with another driver or torch count as lacking.

        Args:
            needs: the speeds that the job reads.
            meter: measures the job's workload on this rank.
            memory: what the ranks' memories hold; shares that do not fit are not measured.

        Raises:
            UserError: calibration.mode=table, and the table has no row for one of the ranks.
        """
        mode, points = needs.settings.mode, _fitting(needs, memory)
        table = SpeedTable(needs.speeds_file, self._progress.warn)
        keys = self._communicator.gather(meter.row_key())
        rows = self._stored(table, keys, meter.versions, mode)
        conditions = keys[0]["shape"], self._throttle.applied.name, tuple(self._throttle.percentages)
        if mode == "auto" and needs.settings.spot_check:
            stored = self._at_present_percentages(rows)
            if self._spot_checker.drop_stale(needs, meter, table, stored, conditions):
                rows = self._stored(table, keys, meter.versions, mode)
        missing = points if mode == "refresh" else []
        if mode == "auto":
            stored_points = [{row.point for row in rank} for rank in self._at_present_percentages(rows)]
            missing = [point for point in points if not all(point in stored for stored in stored_points)]
        if missing:
            self._measure(needs, meter, table, missing)
            self._spot_checker.measured(conditions, [length for length, *_ in missing])
            self._communicator.barrier()
            rows = self._stored(table, keys, meter.versions, mode)
        return TableSpeeds(needs.seq_len, self._throttle.percentages, rows, settings=needs.partitioner)

    def drift_speeds(
        self,
        needs: CalibrationNeeds,
        meter: SpeedMeter,
        memory: RankMemory,
        levels: Sequence[list[float]],
    ) -> dict[tuple[float, ...], list[float]]:
        """Return the speeds of all ranks, in TFLOP/s, at each of several lists of percentages.

        What the table lacks is measured, as in `speeds`. Afterwards the percentages are as before.
        """
        before, needs = self._throttle.percentages, replace(needs, costs=False)
        speeds = {}
        for percentages in levels:
            self._throttle.set_percentages(percentages)
            speeds[tuple(percentages)] = self.speeds(needs, meter, memory).lut()
        self._throttle.set_percentages(before)
        return speeds

    def _measure(
        self, needs: CalibrationNeeds, meter: SpeedMeter, table: SpeedTable, points: Sequence[Point]
    ) -> None:
        """Measure points on all ranks and add them to the table."""
        world_size, settings = self._communicator.world_size, needs.settings
        self._progress.stage(f"calibrating {len(points)} point(s) on {world_size} ranks", len(points))
        rule = StoppingRule(
            settings.min_samples, settings.min_seconds, settings.max_seconds, settings.precision
        )
        measured = []
        for point in points:
            measured.append(meter.measure(point, rule))
            self._progress.advance()
        of_ranks = self._communicator.gather(measured)
        self._warn_if_unequal(of_ranks)
        if self._communicator.rank == 0:
            table.add(row for rows in of_ranks for row in rows)

    def _stored(
        self, table: SpeedTable, keys: Sequence[RowKey], versions: str, mode: str
    ) -> list[list[SpeedRow]]:
        """Return per rank the table's rows of its hardware, at any percentage.

        Rows that were measured with other software count in mode table only, and with a warning.
        """
        all_rows = self._communicator.from_rank_zero(lambda: list(table.mend()))
        rows = [
            [row for row in all_rows if _matches(row, key) and (mode == "table" or row.versions == versions)]
            for key in keys
        ]
        other_versions = {row.versions for of_rank in rows for row in of_rank} - {versions}
        if other_versions:
            self._progress.warn(
                f"speeds were measured with {', '.join(sorted(other_versions))}, not {versions}"
            )
        return rows

    def _at_present_percentages(self, rows: Sequence[Sequence[SpeedRow]]) -> list[list[SpeedRow]]:
        """Return per rank the rows at the percentage that the rank runs at now."""
        return [
            [row for row in of_rank if row.percentage == percentage]
            for of_rank, percentage in zip(rows, self._throttle.percentages, strict=True)
        ]

    def _warn_if_unequal(self, measured: Sequence[Sequence[SpeedRow]]) -> None:
        """Warn once if ranks that share rows are not equally fast, although nothing slows them.

        Args:
            measured: per rank, the rows that it has just measured.
        """
        unthrottled = all(
            not THROTTLES[row.throttle].slows and not row.co_tenants for rows in measured for row in rows
        )
        if self._warned_of_unequal or not unthrottled:
            return
        if unequal := find_unequal_ranks([list(rows) for rows in measured]):
            self._warned_of_unequal = True
            slow, fast, longer = unequal
            self._progress.warn(
                f"rank {slow} takes {longer:.0%} longer than rank {fast}, on devices of one name; "
                f"hetero=measured would plan for each by its own speed"
            )


def software_versions(driver: str | None) -> str:
    """Return the software that decides speed: rows that were measured with another one are not used."""
    return f"torch {torch.__version__}" + (f", driver {driver}" if driver else "")


def _fitting(needs: CalibrationNeeds, memory: RankMemory) -> list[Point]:
    """Return the points that are needed, without large shares that do not fit some rank's memory."""
    points = needs.points
    max_tokens = {length: memory.max_tokens(length) for length, *_ in points}
    return [
        (length, tokens, others)
        for length, tokens, others in points
        if 2 * tokens <= needs.seq_len or all(most is None or tokens <= most for most in max_tokens[length])
    ]


def _matches(row: SpeedRow, key: RowKey) -> bool:
    return all(getattr(row, name) == value for name, value in key.items())
