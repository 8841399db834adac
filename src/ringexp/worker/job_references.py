"""The stored references of one job: read, written and checked together by all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ringexp.calibration.staleness import is_off
from ringexp.choices import PARTITIONERS
from ringexp.stored import an_object
from ringexp.tracking.references import ReferenceStore
from ringexp.tracking.results import References
from ringexp.worker.communicator import Communicator
from ringexp.worker.progress import ProgressWriter
from ringexp.worker.rank_set import Job


@dataclass(frozen=True)
class JobReferences:
    """The references that a job is compared with or that it measures. All ranks call the methods together.

    Attributes:
        communicator: the ranks.
        progress: where warnings go.
        folder: where references are stored.
        job: the job.
        invocation: the call of ringexp that started these ranks.
    """

    communicator: Communicator
    progress: ProgressWriter
    folder: Path
    job: Job
    invocation: str

    @property
    def store(self) -> ReferenceStore:
        return ReferenceStore(self.folder, self.progress.warn)

    @property
    def _is_even(self) -> bool:
        return PARTITIONERS[self.job.config.partitioner.name].is_baseline

    def stored(self) -> References:
        """Return the figures of all references that are stored by now."""
        job = self.job
        return self.communicator.from_rank_zero(lambda: self.store.collect(job.references, job.invocation))

    def missing(self) -> list[str]:
        """Return the kinds of references that should be stored by now and are not."""
        job = self.job
        awaited = {
            kind: facts
            for kind, facts in job.references.items()
            if kind != "even" or not self._is_even  # that one is the run itself
        }
        return self.communicator.from_rank_zero(lambda: self.store.missing(awaited, job.invocation))

    def remember(self, figures: Mapping[str, object]) -> None:
        """Store the figures for every reference that this job measures."""
        if self.communicator.rank == 0:
            for kind, facts in self.job.references.items():
                if kind == self.job.role or (kind == "even" and self._is_even):
                    self.store.put(kind, facts, figures, self.invocation)
        self.communicator.barrier()

    def still_holds(self, figures: dict[str, float], tolerance: float) -> bool:
        """Return whether the job's one reference still takes the stored time.

        If it does not, all stored references of this machine are dropped.

        Args:
            figures: the figures that have just been measured.
            tolerance: the largest accepted relative difference in time.
        """
        ((kind, facts),) = self.job.references.items()

        def compare() -> bool:
            stored = self.store.get(kind, facts)
            if stored is None or stored.latency_ms_median is None:
                return False
            times = stored.latency_ms_median, figures["latency_ms_median"]
            if not is_off(*times, stored.spread, figures["spread"], tolerance):
                return True
            count = self.store.forget(an_object(facts["machine"], "machine"))
            self.progress.warn(
                f"the stored {kind} reference is off, it takes {times[1] / times[0] - 1:+.0%}; "
                f"{count} stored references of this machine are dropped, and those of this run measured anew"
            )
            return False

        return self.communicator.from_rank_zero(compare)
