"""The session of this rank: all that the process keeps between its jobs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ringexp.hetero.applied import AppliedThrottle
from ringexp.ring.transport import Transport
from ringexp.worker.caches import ExpectedOutputs, KernelCache, WorkloadCache
from ringexp.worker.calibrate import Calibrator
from ringexp.worker.communicator import Communicator
from ringexp.worker.hop_costs import HopCosts
from ringexp.worker.progress import ProgressWriter
from ringexp.worker.rank_set import RankSet
from ringexp.worker.throttle_state import ThrottleState


@dataclass(frozen=True)
class Session:
    """One rank of a set, from its start to its end.

    Attributes:
        ranks: the set of ranks.
        device: this rank's device.
        communicator: the way to the other ranks.
        transport: what carries shards.
        throttle: how fast the ranks run now.
        progress: where this rank reports to the launcher.
        workloads, kernels, expected: what is kept for later jobs.
        calibrator: finds out the speeds of the ranks.
        hop_costs: measures the link between the ranks.
    """

    ranks: RankSet
    device: torch.device
    communicator: Communicator
    transport: Transport
    throttle: ThrottleState
    progress: ProgressWriter
    workloads: WorkloadCache
    kernels: KernelCache
    expected: ExpectedOutputs
    calibrator: Calibrator
    hop_costs: HopCosts

    @property
    def rank(self) -> int:
        return self.communicator.rank

    def warn_of_limited_cublas(self) -> None:
        """Say which ranks' cuBLAS uses fewer SMs than they have, since that slows their linear layers."""
        for rank, sms in enumerate(self.communicator.gather(self.throttle.applied.cublas_sms)):
            if sms is not None:
                self.progress.warn(f"rank {rank}: cuBLAS is wrong under MPS here and was held to {sms} SMs")

    def close(self) -> None:
        """Wait for the other ranks, then leave the group."""
        self.communicator.barrier()
        self.transport.close()
        with suppress(Exception):
            dist.destroy_process_group()


def open_session(
    ranks: RankSet,
    device: torch.device,
    communicator: Communicator,
    transport: Transport,
    applied: AppliedThrottle,
    progress: ProgressWriter,
) -> Session:
    """Put together what a rank keeps between its jobs; the parameters are as in `Session`.

    Args:
        applied: the throttle that slows this rank at the start.
    """
    throttle = ThrottleState(communicator, device, applied, ranks.percentages)
    return Session(
        ranks=ranks,
        device=device,
        communicator=communicator,
        transport=transport,
        throttle=throttle,
        progress=progress,
        workloads=WorkloadCache(device, progress),
        kernels=KernelCache(ranks, device, communicator, throttle, progress),
        expected=ExpectedOutputs(),
        calibrator=Calibrator(communicator, throttle, progress),
        hop_costs=HopCosts(communicator, throttle, transport, device, progress),
    )
