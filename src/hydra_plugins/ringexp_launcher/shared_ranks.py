"""The launcher of local sweeps: compose every run first, then run them in as few sets of ranks as they allow.

Starting ranks costs seconds and, on CUDA, a context each; measuring a run often takes less. Each run keeps
its own folder, config and record, as with Hydra's basic launcher; one that fails does not stop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict


@dataclass
class SharedRanksConfig:
    _target_: str = "hydra_plugins.ringexp_launcher.shared_ranks.SharedRanksLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="shared_ranks", node=SharedRanksConfig, provider="ringexp"
)


class SharedRanksLauncher(Launcher):
    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self._context = hydra_context
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose all jobs, then carry them out together; their failures are reported by `ringexp.cli`."""
        from ringexp import cli

        setup_globals()
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        collected: list[tuple[Any, Path]] = []
        returns = []
        for index, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = index
                config.hydra.job.num = index
            returns.append(
                run_job(
                    hydra_context=self._context,
                    task_function=lambda composed: collected.append((composed, cli.output_dir())),
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
            )
        cli.sweep(collected)
        return returns
