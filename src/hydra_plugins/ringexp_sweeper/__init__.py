"""Hydra sweeper `grid`: every combination, less those that say nothing; see `grid`."""

from hydra_plugins.ringexp_sweeper.grid import GridSweeper

__all__ = ["GridSweeper"]
