"""The launcher of local sweeps: runs in as few sets of ranks as they allow.

Starting ranks costs seconds and, on CUDA, a context each; measuring a run often takes less. A run that fails
does not stop the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore

from hydra_plugins.ringexp_launcher.compose import TogetherLauncher

if TYPE_CHECKING:
    from ringexp.cli.run import CarryOut


@dataclass
class SharedRanksConfig:
    """The settings of the launcher: it has none."""

    _target_: str = "hydra_plugins.ringexp_launcher.shared_ranks.SharedRanksLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="shared_ranks", node=SharedRanksConfig, provider="ringexp"
)


class SharedRanksLauncher(TogetherLauncher):
    """The launcher of sweeps on this machine."""

    def carry_out(self) -> CarryOut:
        from ringexp.app import execute

        return lambda runs, console: execute(runs, console, sweep=True)
