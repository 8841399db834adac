"""Hydra's launchers of ringexp: `shared_ranks` for this machine, `slurm` for a cluster."""

from hydra_plugins.ringexp_launcher.shared_ranks import SharedRanksLauncher
from hydra_plugins.ringexp_launcher.slurm import SlurmLauncher

__all__ = ["SharedRanksLauncher", "SlurmLauncher"]
