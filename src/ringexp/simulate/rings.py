"""A ring to simulate, and the figures of each way of splitting a prompt over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringexp import planning
from ringexp.choices import PARTITIONERS
from ringexp.config import DEFAULT_TILE
from ringexp.errors import UserError
from ringexp.planning import (
    Links,
    Mask,
    Plan,
    PlanRequest,
    RankCost,
    SpeedSource,
    busy_ms,
    carried_ms,
    predicted_ms,
    simulate,
)
from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.tracking import metrics

TILE = DEFAULT_TILE["cuda"]


@dataclass(frozen=True)
class KnownSpeeds:
    """A source of speeds for costs that are known: a rank's is the work it does in a millisecond.

    As calibration has it, of one of two equal zigzag shards of the prompt.
    """

    percentages: Sequence[float]
    rank_costs: Sequence[RankCost]
    seq_len: int

    def lut(self) -> list[float]:
        half = max(self.seq_len // 2, 1)
        times = {
            cost: cost.with_hops(1).time_ms(half, half * self.seq_len / 2, half**2 / 2)
            for cost in set(self.rank_costs)
        }
        return [half / times[cost] for cost in self.rank_costs]

    def formula(self) -> list[float]:
        raise UserError(
            "partitioner formula is a regression over measured speeds; simulate it with --costs FILE.csv"
        )

    def costs(self, mask: Mask) -> Sequence[RankCost]:
        return self.rank_costs


@dataclass(frozen=True)
class Ring:
    """A ring to simulate.

    Attributes:
        names: the ranks' names in tables.
        source: the speeds and costs that partitioners ask for.
        links: the cost of hops.
        layers: how many rings follow each other, one per layer.
        mask: the attention mask.
        device_costs: the costs of each device alone, by which capacity is computed. A rank may consist of
            several devices (`heads_over`).
    """

    names: Sequence[str]
    source: SpeedSource
    links: Links
    layers: int
    mask: Mask
    device_costs: Sequence[RankCost]

    def ideal_ms(self, seq_len: int) -> float:
        """Return the capacity-ideal time of one layer: all devices' speeds together, with nothing lost."""
        return 1 / sum(1 / alone for alone in self.alone_ms(seq_len))

    def alone_ms(self, seq_len: int) -> list[float]:
        """Return the time of one layer of the whole prompt on each device alone, if it fitted there."""
        pairs = self.mask.keys_seen(0, seq_len, seq_len)
        return [cost.time_ms(seq_len, pairs, pairs * self.mask.is_causal) for cost in self.device_costs]


@dataclass(frozen=True)
class Split:
    """One way to split a prompt, and how many hops are posted ahead of compute."""

    partitioner: str
    layout: str
    seq_len: int
    prefetch_hops: int | None = None
    tile: int = TILE
    chunks: int = 1


@dataclass(frozen=True)
class Outcome:
    """Simulated figures of one split. Milliseconds are of all layers; members of the ring hold tokens.

    speedup_over_single: the fastest device alone / latency. efficiency: part of the ranks' time in which they
    compute. compute_ms: the slowest member's; transfer_ms: what hops alone would take.
    """

    split: Split
    tokens: list[int]
    latency_ms: float
    capacity_efficiency: float
    speedup_over_single: float
    efficiency: float
    compute_ms: float
    transfer_ms: float

    @property
    def members(self) -> int:
        return sum(1 for count in self.tokens if count)


def plan_for(ring: Ring, split: Split) -> Plan:
    """Plan as runs are planned, in smaller tiles where ranks would go without one."""
    planned_once = [spec.name for spec in PARTITIONERS if not spec.adapts]
    if split.partitioner not in planned_once:
        names = ", ".join(planned_once)
        raise UserError(f"partitioner {split.partitioner} is unknown; choose one of {names}")
    request = PlanRequest(
        seq_len=split.seq_len,
        tile=max(1, min(split.tile, split.seq_len // len(ring.names))),
        layout=split.layout,
        mask=ring.mask,
        chunks=split.chunks,
        prefetch_hops=split.prefetch_hops,
        partitioner=split.partitioner,
    )
    return planning.plan_for(request, ring.source, links=ring.links)


def run(ring: Ring, split: Split) -> Outcome:
    """Plan and simulate. Raises UserError for a split that is none."""
    plan, costs = plan_for(ring, split), ring.source.costs(ring.mask)
    latency = predicted_ms(plan, costs, ring.links, split.prefetch_hops)
    busy = busy_ms(plan, costs)
    return Outcome(
        split,
        plan.tokens,
        latency_ms=ring.layers * latency,
        capacity_efficiency=ring.ideal_ms(split.seq_len) / latency,
        speedup_over_single=metrics.speedup(latency, min(ring.alone_ms(split.seq_len))),
        efficiency=metrics.efficiency(busy, latency),
        compute_ms=ring.layers * max(busy),
        transfer_ms=ring.layers * sum(carried_ms(part, ring.links) for part in plan.chunks or (plan,)),
    )


def timings(ring: Ring, split: Split) -> list[IterationTiming]:
    """Return the timings of one layer as a run's clock would read them, one per rank, without chunks."""
    costs = ring.source.costs(ring.mask)
    simulation = simulate(plan_for(ring, split), costs, ring.links, split.prefetch_hops)
    ranks = [IterationTiming(simulation.latency_ms, 0.0) for _ in ring.names]
    for place, (rank, spent_ms) in enumerate(zip(simulation.members, simulation.busy_ms(), strict=True)):
        hops = [
            HopTiming(
                source=hop.source,
                wait_ms=hop.wait_ms,
                compute_ms=hop.compute_end - hop.compute_begin,
                transfer_ms=hop.arrival - hop.transfer_begin,
                transfer_start_ms=hop.transfer_begin,
            )
            for hop in simulation.hops(place)
        ]
        ranks[rank] = IterationTiming(simulation.latency_ms, spent_ms, hops, [simulation.transfers[0][place]])
    return ranks
