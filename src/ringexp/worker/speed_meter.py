"""One point of the calibration table, measured on all ranks at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from math import ceil
from typing import TypedDict

import torch

from ringexp.calibration.measure import SpeedSample, StoppingRule, measure_speed
from ringexp.calibration.rows import Point, SpeedRow
from ringexp.choices import KERNELS
from ringexp.kernels import Kernel
from ringexp.models.inputs import local_inputs
from ringexp.models.workload import Workload
from ringexp.planning import Plan, apportion, make_plan
from ringexp.ring.context import RingContext
from ringexp.ring.loopback import LoopbackTransport
from ringexp.worker.communicator import Communicator
from ringexp.worker.cuda_graphs import CudaGraphs
from ringexp.worker.throttle_state import ThrottleState

MOST_IN_A_ROW = 8
"""The largest number of units that one sample takes the time of."""

LONG_SAMPLE_MS = 200.0
"""In a sample of this length the host's time to begin is negligible, so no more units are timed together."""


class RowKey(TypedDict):
    """What the calibration rows of one rank have in common."""

    hardware: str
    throttle: str
    ranks_per_device: int
    co_tenants: str
    shape: str


@dataclass(frozen=True)
class SpeedMeter:
    """Measure the speed of this rank for one workload and kernel, while all other ranks measure theirs.

    Attributes:
        communicator: the ranks.
        throttle: how fast the ranks run now.
        device: this rank's device.
        ranks_per_device: the number of ranks that share the device.
        workload: what is measured.
        kernel: what computes its blocks.
        graphs: whether units are CUDA graphs.
        announces: the run's transport announces shards before they arrive.
        tile: the length that shards are a multiple of.
        seed: decides the inputs.
        versions: the software that decides speed, as rows name it.
    """

    communicator: Communicator
    throttle: ThrottleState
    device: torch.device
    ranks_per_device: int
    workload: Workload
    kernel: Kernel
    graphs: CudaGraphs
    announces: bool
    tile: int
    seed: int
    versions: str

    def row_key(self) -> RowKey:
        """Return what the calibration rows of this rank have in common."""
        return {
            "hardware": self.throttle.hardware,
            "throttle": self.throttle.applied.name,
            "ranks_per_device": self.ranks_per_device,
            "co_tenants": self.throttle.co_tenants,
            "shape": f"{self.workload.speed_key}-{KERNELS[self.kernel.name].stored_as or self.kernel.name}",
        }

    def measure(self, point: Point, rule: StoppingRule) -> SpeedRow:
        """Measure a point and return this rank's row. All ranks call this together.

        The rank computes one shard of a zigzag ring, with its own keys and values in place of its peers'. So
        linear layers, the causal block, full blocks and merges have the run's own proportions, and nothing is
        transferred.
        """
        plan = self._plan(point)
        ring = self._ring(plan)
        local = local_inputs(self.workload.inputs(plan.seq_len, self.seed), plan, 0)
        flops = self.workload.shape.layer_flops(plan, 0)
        sample = self._sample(self.workload.unit(local, ring), ring, flops, rule)
        self.communicator.barrier()
        length, tokens, others = point
        return SpeedRow(
            **self.row_key(),
            percentage=self.throttle.applied.percentage,
            length=length,
            tokens=tokens,
            others=others,
            speed_tflops=sample.speed_tflops,
            time_ms=sample.time_ms,
            spread=sample.spread,
            samples=sample.samples,
            measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions=self.versions,
        )

    def _plan(self, point: Point) -> Plan:
        """Return a plan in which rank 0 has the point's tokens and its peers share the rest."""
        length, tokens, others = point
        rest = length - tokens
        tile = self.tile if rest >= others * self.tile else 1
        peers = apportion([1.0] * others, rest, tile) if rest else [0]
        return make_plan(length, [tokens, *peers], mask=self.workload.shape.mask)

    def _ring(self, plan: Plan) -> RingContext:
        """Return a ring in which this rank takes rank 0's place and gets back its own shards."""
        shares_gpu = bool(self.throttle.co_tenants)  # which need copies of keys and values
        transport = LoopbackTransport(announces=self.announces, lays_out=shares_gpu)
        clock = self.throttle.clock(self.workload.shape.only_attention)
        return RingContext(plan, 0, transport, self.kernel, clock)

    def _sample(
        self, unit: Callable[[], torch.Tensor], ring: RingContext, flops: float, rule: StoppingRule
    ) -> SpeedSample:
        """Time a unit of the workload until the rule is met on every rank."""
        most = self._most_in_a_row()
        in_a_row = most
        if most > 1:
            once = self.graphs.iteration(unit, ring)
            once.run()  # may compile
            in_a_row = enough_in_a_row(once.run()[1].busy_ms, most)
        piece = self.graphs.iteration(lambda: [unit() for _ in range(in_a_row)][-1], ring)
        return measure_speed(
            lambda: piece.run()[1].busy_ms / in_a_row,
            flops,
            rule=rule,
            start_together=self.communicator.barrier,
            finish_together=self.communicator.common_end(),
            warm=self.graphs.enabled or most > in_a_row == 1,  # capturing runs the piece; else `once` did
        )

    def _most_in_a_row(self) -> int:
        """Return the most units that are timed together.

        Where the host launches kernels one by one, the device waits for the first of them. A model of many
        layers waits only once, so several of its layers are timed together.
        """
        eager_cuda = self.device.type == "cuda" and not self.graphs.enabled
        return min(self.workload.shape.layers, MOST_IN_A_ROW) if eager_cuda else 1


def enough_in_a_row(unit_ms: float, most: int) -> int:
    """Return how many units of `unit_ms` make a long sample; `most` at most."""
    return min(max(ceil(LONG_SAMPLE_MS / unit_ms), 1), most)
