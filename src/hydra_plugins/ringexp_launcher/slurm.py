"""The launcher of sweeps on a cluster, `hydra/launcher=slurm`; its settings are in conf/hydra/launcher/."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from hydra_plugins.ringexp_launcher.compose import TogetherLauncher
from ringexp.config import SlurmConfig

if TYPE_CHECKING:
    from ringexp.cli.run import CarryOut


class SlurmLauncher(TogetherLauncher):
    """The launcher of sweeps on a cluster."""

    def __init__(self, **settings: object) -> None:
        plain = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in settings.items()
        }
        self._settings = SlurmConfig(**plain)  # pyright: ignore[reportArgumentType]

    def carry_out(self) -> CarryOut:
        from ringexp.app.slurm_job import carry_out
        from ringexp.slurm.submit import execute

        settings = self._settings
        return lambda runs, console: execute(runs, console, settings, carry_out)
