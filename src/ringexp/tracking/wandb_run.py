"""wandb, kept at arm's length: what goes wrong here is said once and never stops a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringexp.config import TrackerConfig
from ringexp.names import MAX_WANDB_NAME, MAX_WANDB_TAG, shortened

if TYPE_CHECKING:
    import pandas as pd

SYSTEM_SAMPLE_S = 1.0
"""How often wandb samples the machine: its 15 s are longer than most runs. A sample takes under 2 ms."""


def to_stderr(text: str) -> None:
    print(f"ringexp: {text}", file=sys.stderr)


class WandbRun:
    """One wandb run in the folder of what it records; does nothing for tracker=disabled.

    job_type: `run` for a run of the ring, `report` for the report of a sweep. warn: told once of a failure.
    """

    def __init__(
        self,
        folder: Path,
        tracker: TrackerConfig,
        settings: dict[str, Any],
        tags: Sequence[str] = (),
        job_type: str = "run",
        warn: Callable[[str], None] = to_stderr,
    ) -> None:
        self._run: Any = None
        self._warn, self._warned = warn, False
        if tracker.mode != "disabled":
            self._guard(lambda: self._start(folder, tracker, settings, tags, job_type))

    def _start(
        self,
        folder: Path,
        tracker: TrackerConfig,
        settings: dict[str, Any],
        tags: Sequence[str],
        job_type: str,
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=tracker.project,
            entity=tracker.entity,
            group=tracker.group and shortened(tracker.group, MAX_WANDB_NAME),
            job_type=job_type,
            name=shortened(
                folder.name if job_type == "run" else f"{job_type} {folder.parent.name}", MAX_WANDB_NAME
            ),
            mode=tracker.mode,  # pyright: ignore[reportArgumentType]
            dir=str(folder),
            config=settings,
            tags=[shortened(tag, MAX_WANDB_TAG) for tag in [*tags, *tracker.tags]],
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_transaction_log_flush_interval=1.0,
                x_stats_sampling_interval=SYSTEM_SAMPLE_S,
            ),
        )
        if job_type == "run":
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

    def log_media(self, images: Mapping[str, Path], tables: Mapping[str, pd.DataFrame]) -> None:
        """Log figures and tables, under their names."""
        if self._run is not None:
            self._guard(lambda: self._log_media(images, tables))

    def _log_media(self, images: Mapping[str, Path], tables: Mapping[str, pd.DataFrame]) -> None:
        import wandb

        media: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in images.items()}
        for name, table in tables.items():
            rows = table.astype(object).where(table.notna(), None)
            media[name] = wandb.Table(
                columns=list(rows.columns), data=rows.values.tolist(), allow_mixed_types=True
            )
        self._run.log(media)

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(summary))
            self._guard(lambda: self._run.finish(exit_code=exit_code))
            self._guard(self._check_space)
            self._run = None

    def _check_space(self) -> None:
        """Raises OSError where nothing more can be written: wandb loses records there without a word."""
        probe = Path(self._run.dir).parent / ".space"
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # tracking is a guest: any failure of it is reported, none is fatal
            if not self._warned:
                self._warn(f"wandb: {error}; it goes on, and the files are complete")
            self._warned = True
