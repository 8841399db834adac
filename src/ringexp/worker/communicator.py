"""Small values and barriers among the ranks of a set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from ringexp.calibration.rows import SpeedRow
from ringexp.errors import PeerFailed, UserError
from ringexp.models.checkpoints.check import CheckpointCheck
from ringexp.ring.messages import Messages
from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.tracking.accuracy import Accuracy
from ringexp.tracking.references import KernelTimes
from ringexp.tracking.results import References

T = TypeVar("T")

EXCHANGED = (IterationTiming, HopTiming, SpeedRow, Accuracy, References, CheckpointCheck, KernelTimes)
"""The dataclasses that ranks send to each other; any other type is refused."""


class Communicator:
    """Exchange small values with the other ranks of the set, and wait for them. All ranks make equal calls.

    Attributes:
        rank: this rank's number.
        world_size: the number of ranks.
    """

    def __init__(self, rank: int, control: dist.ProcessGroup, store: dist.Store, key: bytes = b"") -> None:
        """Open the channel.

        Args:
            rank: this rank's number.
            control: a gloo group of all ranks.
            store: the part of the rendezvous store that belongs to this communicator.
            key: the run's secret, which signs every message; empty for none.
        """
        self.rank, self.world_size = rank, dist.get_world_size(control)
        self._control, self._store = control, store
        self._messages = Messages(control, EXCHANGED, key, "session")
        self._loops = 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, on every rank."""
        return self._messages.all_gather(value)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        dist.barrier(self._control)

    def from_rank_zero(self, value: Callable[[], T]) -> T:
        """Call `value` on rank 0 only and return its result on every rank.

        Raises:
            Exception: on rank 0, what `value` raises. Every other rank then raises UserError with the same
                message if rank 0 raised one, else PeerFailed.
        """
        if self.rank:
            answer, kind, message = self._messages.broadcast(None)
            if kind == UserError.__name__:
                raise UserError(message)
            if kind:
                raise PeerFailed(f"rank 0 failed: {kind}: {message}")
            return answer
        try:
            answer = value()
        except Exception as error:  # the other ranks wait for an answer
            self._messages.broadcast((None, type(error).__name__, str(error)))
            raise
        self._messages.broadcast((answer, "", ""))
        return answer

    def common_end(self) -> Callable[[], bool]:
        """Return a function by which all ranks leave a loop together.

        A rank calls the function whenever it has done enough. It returns True once every rank has called it.
        """
        self._loops += 1
        counter, counted = f"loop/{self._loops}", False

        def everyone_is_done() -> bool:
            nonlocal counted
            done = self._store.add(counter, 0 if counted else 1)
            counted = True
            return done >= self.world_size

        return everyone_is_done
