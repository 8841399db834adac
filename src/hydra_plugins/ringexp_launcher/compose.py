"""The base of our launchers: compose all runs of a sweep first, then carry them out together.

Each run keeps its own folder, config and record, as with Hydra's basic launcher.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

if TYPE_CHECKING:
    from ringexp.cli.run import CarryOut


class TogetherLauncher(Launcher):
    """A launcher that hands over all runs of a sweep at once."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context = hydra_context
        self._config = config

    @abstractmethod
    def carry_out(self) -> CarryOut:
        """Return the function that carries out validated runs."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose all jobs, then carry them out together. `ringexp.cli.run` reports their failures."""
        from ringexp.cli import run as cli

        setup_globals()
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        collected: list[tuple[DictConfig, Path]] = []
        returns = []
        for index, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = index
                config.hydra.job.num = index
            if not (config.dry_run and config.hydra.sweep.subdir == ""):
                _stay_inside(config.hydra.sweep)
            returns.append(
                run_job(
                    hydra_context=self._context,
                    task_function=lambda composed: collected.append((composed, cli.output_dir())),
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
            )
        cli.sweep(collected, self.carry_out())
        return returns


def _stay_inside(sweep: DictConfig) -> None:
    """Raise UserError for a run's folder that is not inside the sweep's."""
    from ringexp.errors import UserError

    folder, inside = Path(sweep.dir).resolve(), Path(sweep.dir, str(sweep.subdir)).resolve()
    if folder not in inside.parents:
        raise UserError(
            f"hydra.sweep.subdir={sweep.subdir} leads out of hydra.sweep.dir={sweep.dir}: name a folder in it"
        )
