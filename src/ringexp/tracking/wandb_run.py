"""wandb, kept at arm's length: what goes wrong here is said once and never stops a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringexp.config import Config
from ringexp.hetero.profiles import label


class WandbRun:
    """One wandb run in the run's own folder; does nothing for tracker=disabled."""

    def __init__(self, run_dir: Path, config: Config, settings: dict[str, Any]) -> None:
        self._run: Any = None
        self._warned = False
        if config.tracker.mode != "disabled":
            self._guard(lambda: self._start(run_dir, config, settings))

    def _start(self, run_dir: Path, config: Config, settings: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=config.tracker.project,
            entity=config.tracker.entity,
            group=config.tracker.group,
            name=run_dir.name,
            mode=config.tracker.mode,  # pyright: ignore[reportArgumentType]
            dir=str(run_dir),
            config=settings,
            tags=[
                config.model.name,
                label(config.hetero.percentages),
                config.partitioner.name,
                config.layout.name,
                *config.tracker.tags,
            ],
            settings=wandb.Settings(silent=True, console="off", x_transaction_log_flush_interval=1.0),
        )
        self._run.define_metric("*", step_metric="iteration")

    @property
    def where(self) -> str | None:
        """Folder of the offline record, or the run's page; None without wandb."""
        if self._run is None:
            return None
        return self._run.url or str(Path(self._run.dir).parent)

    def log(self, values: dict[str, Any]) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.log(values))

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(summary))
            self._guard(lambda: self._run.finish(exit_code=exit_code))
            self._run = None

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # tracking is a guest: any failure of it is reported, none is fatal
            if not self._warned:
                print(f"ringexp: wandb: {error}; the run goes on and its files are complete", file=sys.stderr)
            self._warned = True
