"""Hydra launcher `shared_ranks`: the runs of a sweep that can share ranks do; see `shared_ranks`."""

from hydra_plugins.ringexp_launcher.shared_ranks import SharedRanksLauncher

__all__ = ["SharedRanksLauncher"]
