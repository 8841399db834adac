"""Hydra's basic sweeper with `leave_out`: combinations of a product that are not run.

    hydra:
      sweeper:
        params: {layout: "contiguous,zigzag", split: "tokens,kv"}
        leave_out:
          - {split: kv, layout: contiguous}              # a job with all of these values
          - {split: kv, seq_len: [8192, 32768]}          # a list: any of them

So a study stays one grid, and giving one of its axes on the command line needs no other change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ringexp.cli.arguments import with_counts
from ringexp.cli.messages import folder_line
from ringexp.errors import UserError

LAUNCHERS = ("shared_ranks", "slurm", "slurm_local_debug", "basic")
"""Launchers that can start ranks. With basic every job has ranks of its own."""


@dataclass
class GridSweeperConfig:
    """The settings of the sweeper."""

    _target_: str = "hydra_plugins.ringexp_sweeper.grid.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    leave_out: list[dict[str, Any]] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConfig, provider="ringexp")


class GridSweeper(BasicSweeper):
    """A sweeper over every combination of values but those that `leave_out` names."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        leave_out: Sequence[Mapping[str, object]] = (),
    ) -> None:
        super().__init__(max_batch_size, params)
        self._leave_out = leave_out

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Refuse launchers that run each job by itself: they know nothing of ranks that jobs share."""
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        if launcher not in LAUNCHERS:
            raise UserError(
                f"hydra/launcher={launcher} cannot start ranks; use hydra/launcher=slurm on a cluster "
                "(docs/slurm.md), or leave it out"
            )
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch the jobs batch by batch; a dry run leaves no record of the sweep."""
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        given = with_counts([*self._parse_config(), *arguments])
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = self.split_arguments(parser.parse_overrides(given), self.max_batch_size)
        if not self.config.dry_run:
            folder = Path(self.config.hydra.sweep.dir)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                OmegaConf.save(self.config, folder / "multirun.yaml")
            except OSError as error:
                raise UserError(folder_line(error)) from error
        returns, begun = [], 0
        for batch in batches:
            self.validate_batch_is_legal(batch)
            returns.append(self.launcher.launch(batch, initial_job_idx=begun))
            begun += len(batch)
            for job in returns[-1]:
                _ = job.return_value  # raises what the job raised
        return returns

    def split_arguments(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return the jobs in chunks of `max_batch_size`; a job is a list of overrides."""
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        kept = [job for job in jobs if not any(_matches(job, rule) for rule in self._leave_out)]
        if not kept:
            return []
        return list(BasicSweeper.split_overrides_to_chunks(kept, max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose only jobs with an override that no earlier one has: bad names show all the same."""
        seen: set[str] = set()
        firsts = []
        for job in batch:
            if not seen.issuperset(job):
                firsts.append(job)
            seen.update(job)
        super().validate_batch_is_legal(firsts)


def _matches(job: Sequence[str], rule: Mapping[str, object]) -> bool:
    """Tell whether the job has every value of the rule. A key that the job does not set matches nothing."""
    values = dict(override.split("=", 1) for override in job)
    return all(
        key in values and any(_value(values[key]) == _value(str(one)) for one in _listed(wanted))
        for key, wanted in rule.items()
    )


def _listed(wanted: object) -> Sequence[object]:
    return wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]


@lru_cache(maxsize=4096)
def _value(text: str) -> object:
    """Return an override's value as Hydra reads it, so that [100,50] equals [100.0, 50]."""
    return OverridesParser.create().parse_override(f"key={text}").value()
