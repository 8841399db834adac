"""Stored speeds are tried out before they are relied on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ringexp.calibration.rows import Point, SpeedRow
from ringexp.calibration.staleness import SPOT_CHECK, deviation, is_stale, spot_point
from ringexp.calibration.table import SpeedTable
from ringexp.worker.calibration_needs import CalibrationNeeds
from ringexp.worker.communicator import Communicator
from ringexp.worker.progress import ProgressWriter
from ringexp.worker.speed_meter import SpeedMeter

Conditions = tuple[str, str, tuple[float, ...]]
"""The shape, the throttle and the percentages of all ranks, under which stored speeds were measured."""


class SpotChecker:
    """Measure stored points again, briefly, and drop those that are off. All ranks call the methods together.

    Each set of conditions is checked once. If a stored speed is off there, each further length is checked by
    itself before it is used, now or by a later job.
    """

    def __init__(
        self,
        communicator: Communicator,
        progress: ProgressWriter,
        warn_if_unequal: Callable[[Sequence[Sequence[SpeedRow]]], None],
    ) -> None:
        self._communicator, self._progress = communicator, progress
        self._warn_if_unequal = warn_if_unequal
        self._trusted: set[Conditions] = set()
        self._tried_lengths: dict[Conditions, set[int]] = {}

    def measured(self, conditions: Conditions, lengths: Sequence[int]) -> None:
        """Note that these lengths were just measured, and need no check."""
        if tried := self._tried_lengths.get(conditions):
            tried.update(lengths)

    def drop_stale(
        self,
        needs: CalibrationNeeds,
        meter: SpeedMeter,
        table: SpeedTable,
        stored: Sequence[Sequence[SpeedRow]],
        conditions: Conditions,
    ) -> bool:
        """Check stored speeds and drop from the table those that are wrong, and only those.

        One point per rank, of the length nearest to the job's, speaks for all lengths. If it is off for a
        rank, the rows of that length are dropped for that rank.

        Args:
            needs: the speeds that the job reads.
            meter: measures the job's workload.
            table: where the rows are stored.
            stored: per rank, its rows at its present percentage.
            conditions: the conditions under which the rows were measured.

        Returns:
            Whether any row was dropped.
        """
        if conditions in self._trusted:
            return False
        longest = max(needs.seq_len, *needs.lengths)  # that the workload was built for
        usable = [[row for row in rows if row.length <= longest] for rows in stored]
        if not any(stored):  # all is going to be measured now
            self._trusted.add(conditions)
        tried = self._tried_lengths.setdefault(conditions, set())
        stale, doubtful = False, bool(tried)
        while True:
            # Once a length was off, only lengths that the job reads are checked; a regression reads all.
            read = set(needs.lengths) if doubtful and not needs.fits_lengths else None
            untried = [
                [row for row in rows if row.length not in tried and (read is None or row.length in read)]
                for rows in usable
            ]
            point = spot_point(untried, needs.seq_len)
            if point is None:
                break
            of_length = [[row for row in rows if row.length == point[0]] for rows in stored]
            stale_ranks = self._stale_ranks(meter, point, of_length, needs.settings.tolerance)
            tried.add(point[0])
            if stale_ranks:
                stale = doubtful = True
                if self._communicator.rank == 0:
                    table.drop(row for rank in stale_ranks for row in of_length[rank])
            elif not doubtful:
                self._trusted.add(conditions)
                break
        self._communicator.barrier()
        return stale

    def _stale_ranks(
        self, meter: SpeedMeter, point: Point, stored: Sequence[Sequence[SpeedRow]], tolerance: float
    ) -> list[int]:
        """Measure a point again, briefly, on all ranks. Return the ranks whose stored row of it is off."""
        self._progress.stage(f"checking a stored speed of each of {self._communicator.world_size} ranks")
        spots = self._communicator.gather(meter.measure(point, SPOT_CHECK))
        self._warn_if_unequal([[spot] for spot in spots])
        stale_ranks = []
        for rank, spot in enumerate(spots):
            (row,) = (row for row in stored[rank] if row.point == point)
            if is_stale(row, spot, tolerance):
                stale_ranks.append(rank)
                self._progress.warn(
                    f"rank {rank}: a stored speed is off, {point[0]} tokens take "
                    f"{deviation(row, spot):+.0%}; that length is measured again"
                )
        return stale_ranks
