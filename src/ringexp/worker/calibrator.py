"""What ranks find out about speeds before a job: in the table, by measuring, by trying out what is stored."""

from __future__ import annotations

from datetime import datetime, timezone
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from ringexp.calibration.cost_model import cost_points
from ringexp.calibration.link import LinkCost, measure_link
from ringexp.calibration.measure import StoppingRule, calibration_lengths, measure_speed
from ringexp.calibration.source import TableSpeeds
from ringexp.calibration.staleness import SPOT_CHECK, deviation, is_stale, spot_point, unlike
from ringexp.calibration.table import Point, SpeedRow, SpeedTable
from ringexp.config import DEFAULT_TILE, Config
from ringexp.hetero.drift import levels
from ringexp.kernels import Kernel
from ringexp.models.inputs import local_inputs
from ringexp.models.workload import Workload
from ringexp.planning import HopCost, apportion, make_plan
from ringexp.ring.loop import RingContext
from ringexp.ring.transport import LoopbackTransport

if TYPE_CHECKING:
    from ringexp.worker.session import Session


MOST_IN_A_ROW = 8

LONG_SAMPLE_MS = 200.0
"""What the host needs to begin is nothing beside it, so no more units are timed together."""


def lengths_of(config: Config) -> list[int]:
    """The lengths at which a config needs speeds."""
    return calibration_lengths(config.seq_len, for_fit=config.partitioner.name == "formula")


def points_of(config: Config, costs: bool) -> list[Point]:
    """What a config needs measured; with `costs` what predictions take, too."""
    points = {(length, length // 2, 1) for length in lengths_of(config)}
    if costs:
        around, others = calibration_lengths(config.seq_len, for_fit=False), config.world_size - 1
        points |= {(length, tokens, 1) for length, tokens in cost_points(around)}
        points |= {(length, length // 2, others) for length in around if 1 < others <= length - length // 2}
    return sorted(points)


class Calibrator:
    """Of one rank of a session; all ranks call its methods in step."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._measurements = 0
        self.link: LinkCost | None = None
        """What hops cost; None before they were measured."""
        self._unlike = False  # whether that has been said
        self._checked: set[Any] = set()  # shapes, and profiles, whose stored speeds were tried out
        self._tried: dict[Any, set[int]] = {}  # of others the lengths that were tried out or measured

    def speeds(self, config: Config, costs: bool) -> TableSpeeds:
        """Speeds of all ranks for this config, and costs: from the table, after measuring what it lacks.

        What was measured with another driver or torch is lacking. Raises UserError if calibration.mode=table
        and the table has nothing for a rank.
        """
        workload = self.session.workload(config)
        kernel = self.session.kernel(config, workload)
        mode, points = config.calibration.mode, self._fitting(points_of(config, costs), config, workload)
        keys = self.session.gather(self._key(workload, kernel))
        rows = self._stored(config, keys)
        if mode == "auto" and self._drop_stale(config, workload, kernel, keys, rows):
            rows = self._stored(config, keys)
        missing = points if mode == "refresh" else []
        if mode == "auto":
            have = [{row.point for row in self._own(rows, rank)} for rank in self._everyone]
            missing = [point for point in points if not all(point in mine for mine in have)]
        if missing:
            self.session.progress.stage(
                f"calibrating {len(missing)} point(s) on {self.session.world_size} ranks", len(missing)
            )
            asked = config.calibration
            effort = StoppingRule(asked.min_samples, asked.min_seconds, asked.max_seconds, asked.precision)
            measured = []
            for point in missing:
                measured.append(self._measure(config, workload, kernel, point, effort))
                self.session.progress.advance()
            of_ranks = self.session.gather(measured)
            self._tell_if_unlike(of_ranks)
            if self.session.rank == 0:
                table = SpeedTable(config.speeds_file, self.session.progress.warn)
                table.add(row for mine in of_ranks for row in mine)
            if tried := self._tried.get(self._checking(keys[0]["shape"])):
                tried.update(length for length, *_ in missing)
            self.session.barrier()
            rows = self._stored(config, keys)
        return TableSpeeds(config.seq_len, self.session.percentages, rows)

    def drift_speeds(self, config: Config) -> dict[tuple[float, ...], list[float]]:
        """Speeds of all ranks, TFLOP/s, at all percentages that a config's timed prompts run at.

        Measured under each as `speeds` does, where the table lacks them; the percentages are then as before.
        """
        hetero, before = config.hetero, self.session.percentages
        found = {}
        for level in levels(hetero.drift, hetero.percentages, config.repeats):
            self.session.set_percentages(level)
            found[tuple(level)] = self.speeds(config, costs=False).lut()
        self.session.set_percentages(before)
        return found

    def _fitting(self, points: list[Point], config: Config, workload: Workload) -> list[Point]:
        """The points without those large shares that some rank's memory does not hold."""
        rooms = {length: self.session.room(config, workload, length) for length, *_ in points}
        return [
            (length, tokens, others)
            for length, tokens, others in points
            if 2 * tokens <= config.seq_len or all(most is None or tokens <= most for most in rooms[length])
        ]

    @property
    def _everyone(self) -> range:
        return range(self.session.world_size)

    @property
    def _versions(self) -> str:
        """The software that decides speed: rows that were measured with another one are not used."""
        driver = self.session.ranks.machine.get("driver")
        return f"torch {torch.__version__}" + (f", driver {driver}" if driver else "")

    def _key(self, workload: Workload, kernel: Kernel) -> dict[str, Any]:
        """What the calibration rows of this rank have in common."""
        return {
            "hardware": self.session.hardware(),
            "throttle": self.session.throttle.name,
            "ranks_per_device": self.session.ranks.ranks_per_device,
            "beside": self.session.beside,
            "shape": f"{workload.speed_key}-{kernel.name}",
        }

    def _stored(self, config: Config, keys: list[dict[str, Any]]) -> list[list[SpeedRow]]:
        """The table's rows of each rank's hardware, of all percentages; old software counts in mode table."""
        table = SpeedTable(config.speeds_file, self.session.progress.warn)
        known = self.session.from_rank_zero(lambda: list(table.mend()))
        software = {} if config.calibration.mode == "table" else {"versions": self._versions}
        rows = [_matching(known, **key, **software) for key in keys]
        old = {row.versions for mine in rows for row in mine} - {self._versions}
        if old:
            self.session.progress.warn(
                f"speeds were measured with {', '.join(sorted(old))}, not {self._versions}"
            )
        return rows

    def _own(self, rows: list[list[SpeedRow]], rank: int) -> list[SpeedRow]:
        """Those of a rank's rows that are of its own percentage."""
        return _matching(rows[rank], percentage=self.session.percentages[rank])

    def _drop_stale(
        self,
        config: Config,
        workload: Workload,
        kernel: Kernel,
        keys: list[dict[str, Any]],
        rows: list[list[SpeedRow]],
    ) -> bool:
        """Check stored speeds before they are relied on; drop those that are wrong, and only those.

        One point of each rank, of the length nearest to the run, speaks for all its lengths. If it is off for
        a rank, the rows of that length are dropped for that rank, and each other length is checked by itself
        when it is needed, now or by a later job. Returns whether anything was dropped.
        """
        checking = self._checking(keys[0]["shape"])
        if checking in self._checked or not config.calibration.spot_check:
            return False
        own = [self._own(rows, rank) for rank in self._everyone]
        longest = max(config.seq_len, *lengths_of(config))  # that the workload was built for
        usable = [[row for row in mine if row.length <= longest] for mine in own]
        if not any(own):  # all is going to be measured now
            self._checked.add(checking)
        tried = self._tried.setdefault(checking, set())
        stale, doubtful = False, bool(tried)
        while True:
            # A regression is over all lengths.
            needed = set(lengths_of(config)) if doubtful and config.partitioner.name != "formula" else None
            open_rows = [
                [row for row in mine if row.length not in tried and (needed is None or row.length in needed)]
                for mine in usable
            ]
            point = spot_point(open_rows, config.seq_len)
            if point is None:
                break
            of_length = [[row for row in mine if row.length == point[0]] for mine in own]
            off = self._stale_ranks(config, workload, kernel, point, of_length)
            tried.add(point[0])
            if off:
                stale = doubtful = True
                if self.session.rank == 0:
                    table = SpeedTable(config.speeds_file, self.session.progress.warn)
                    table.drop(row for rank in off for row in of_length[rank])
            elif not doubtful:
                self._checked.add(checking)
                break
        self.session.barrier()
        return stale

    def _checking(self, shape: str) -> Any:
        """Whose stored speeds a check speaks for: those of a shape, at the ranks' present percentages."""
        return shape, self.session.throttle.name, tuple(self.session.percentages)

    def _stale_ranks(
        self,
        config: Config,
        workload: Workload,
        kernel: Kernel,
        point: Point,
        stored: list[list[SpeedRow]],
    ) -> list[int]:
        """Measure a point again, briefly, on all ranks; returns those whose stored row of it is off."""
        self.session.progress.stage(f"checking a stored speed of each of {self.session.world_size} ranks")
        spots = self.session.gather(self._measure(config, workload, kernel, point, SPOT_CHECK))
        self._tell_if_unlike([[spot] for spot in spots])
        off = []
        for rank, spot in enumerate(spots):
            (row,) = (row for row in stored[rank] if row.point == point)
            if is_stale(row, spot, config.calibration.tolerance):
                off.append(rank)
                self.session.progress.warn(
                    f"rank {rank}: a stored speed is off, {point[0]} tokens take "
                    f"{deviation(row, spot):+.0%}; that length is measured anew"
                )
        return off

    def _tell_if_unlike(self, measured: list[list[SpeedRow]]) -> None:
        """Say once if ranks that share rows are not equally fast, though nothing slows them."""
        free = all(row.throttle == "none" and not row.beside for rows in measured for row in rows)
        found = unlike(measured) if free and not self._unlike else None
        if found:
            self._unlike = True
            slow, fast, longer = found
            self.session.progress.warn(
                f"rank {slow} takes {longer:.0%} longer than rank {fast}, on devices of one name; "
                f"hetero=measured would plan for each by its own speed"
            )

    def _measure(
        self,
        config: Config,
        workload: Workload,
        kernel: Kernel,
        point: Point,
        effort: StoppingRule,
    ) -> SpeedRow:
        """This rank's row: one shard of a zigzag ring, mostly of two, with its own K/V for the peers'.

        That is what a rank of the ring computes with so many tokens of that length, linear layers, causal
        block, full blocks and merges in the run's own proportions, and nothing is transferred.
        """
        length, tokens, others = point
        rest, tile = length - tokens, config.tile or DEFAULT_TILE[self.session.device.type]
        tile = tile if rest >= others * tile else 1
        peers = apportion([1.0] * others, rest, tile) if rest else [0]
        plan = make_plan(length, [tokens, *peers], causal=workload.shape.causal)
        shares = bool(self.session.beside)  # keys and values are copied for the ranks on the same GPU
        transport = LoopbackTransport(announces=self.session.transport.announces, lays_out=shares)
        ring = RingContext(plan, 0, transport, kernel, self.session.clock(workload))
        local = local_inputs(workload.inputs(length, config.seed), plan, 0)
        unit, most = workload.unit(local, ring), self._in_a_row(config, workload)
        in_a_row = most
        if most > 1:
            once = self.session.iteration(config, unit, ring)
            once.run()  # may compile
            in_a_row = enough_in_a_row(once.run()[1].busy_ms, most)
        piece = self.session.iteration(config, lambda: [unit() for _ in range(in_a_row)][-1], ring)
        self._measurements += 1
        counter = f"calibrated/{self._measurements}"
        finished = False

        def timed() -> float:
            return piece.run()[1].busy_ms / in_a_row

        def finish_together() -> bool:
            nonlocal finished
            count = self.session.store.add(counter, 0 if finished else 1)
            finished = True
            return count >= self.session.world_size

        sample = measure_speed(
            timed,
            workload.shape.layer_flops(plan, 0),
            effort=effort,
            start_together=self.session.barrier,
            finish_together=finish_together,
            warm=self.session.captures(config) or most > in_a_row == 1,  # capturing runs it; else `once` did
        )
        self.session.barrier()
        return SpeedRow(
            **self._key(workload, kernel),
            percentage=self.session.throttle.percentage,
            length=length,
            tokens=tokens,
            others=others,
            speed_tflops=sample.speed_tflops,
            time_ms=sample.time_ms,
            spread=sample.spread,
            samples=sample.samples,
            measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=self._versions,
        )

    def _in_a_row(self, config: Config, workload: Workload) -> int:
        """How many units are timed together at most: where kernels are launched one by one, the device waits
        for the first of them, but in a model of many layers only once."""
        eager_cuda = self.session.device.type == "cuda" and not self.session.captures(config)
        return min(workload.shape.layers, MOST_IN_A_ROW) if eager_cuda else 1

    def _even_ring(self, kernel: Kernel) -> RingContext:
        """The ring of all ranks, a token each."""
        session = self.session
        plan = make_plan(session.world_size, [1] * session.world_size)
        return RingContext(plan, session.rank, session.transport, kernel, session.clock())

    def hop_cost(self, config: Config, workload: Workload) -> HopCost | None:
        """What passing on a shard of this workload costs; None where nothing may be measured."""
        if self.session.world_size == 1 or config.calibration.mode == "table":
            return None
        if self.link is None:
            kernel = self.session.kernel(config, workload)
            self.session.progress.stage(f"measuring hops over {self.session.transport.name}")
            self.link = measure_link(
                self._even_ring(kernel), self.session.device, lambda value: max(self.session.gather(value))
            )
        direct = self.session.transport.name == "ipc"
        return HopCost(self.link.latency_ms, self.link.byte_ms * workload.memory.kv_token, direct)


def enough_in_a_row(unit_ms: float, most: int) -> int:
    """How many units of so many ms are timed together: as many as make a long sample, `most` at most."""
    return min(max(ceil(LONG_SAMPLE_MS / unit_ms), 1), most)


def _matching(rows: list[SpeedRow], **wanted: Any) -> list[SpeedRow]:
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
