"""wandb, kept at arm's length: what goes wrong here is said once and never stops a run."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from ringexp.config import TrackerConfig
from ringexp.printable import plain
from ringexp.stored import Warn, to_stderr
from ringexp.tracking.wandb_choice import Choice, choose

if TYPE_CHECKING:
    import pandas as pd
    from wandb.sdk.wandb_run import Run

SYSTEM_SAMPLE_S = 1.0
"""The time between wandb's samples of the machine. Its own 15 s are longer than most runs."""

CONNECT_S = 30.0
"""The time that a server has to answer, or a user to log in, before the record is kept offline."""

OF_ITERATIONS = ("latency_ms_iterations", "adaptation.prompts")
"""Lists with an entry per iteration. The history has them, so the summary leaves them out."""

NESTED_PER_RANK = ("decode.kept", "decode.cache_bytes")
"""Lists with an entry per rank that are parts of other figures."""


def summary_of(values: Mapping[str, object], world_size: int) -> dict[str, object]:
    """Return figures as wandb's summary has them: a list with an entry per rank becomes `rank_N/NAME`."""
    summary: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            parts = {key: part for key, part in value.items() if f"{name}.{key}" not in OF_ITERATIONS}
            lists = [key for key in parts if f"{name}.{key}" in NESTED_PER_RANK]
            for key in lists:
                summary |= _by_rank(f"{name}.{key}", parts.pop(key))
            summary[name] = parts
        elif not isinstance(value, list | tuple):
            summary[name] = value
        elif name not in OF_ITERATIONS and len(value) == world_size:
            summary |= _by_rank(name, value)
    return summary


def _by_rank(name: str, values: Sequence[object]) -> dict[str, object]:
    rank_summary: dict[str, object] = {}
    for rank, value in enumerate(values):
        parts = value if isinstance(value, Mapping) else {"": value}
        rank_summary |= {f"rank_{rank}/{name}.{key}".removesuffix("."): part for key, part in parts.items()}
    return rank_summary


class WandbRun:
    """One wandb run in the folder of what it records; does nothing for tracker=disabled.

    job_type: `run` for a run of the ring, `report` for the report of a sweep. warn: told once of a failure.
    """

    online_failed: ClassVar[bool] = False
    """True once this process could not reach a server. Further records then begin offline."""

    temporary: ClassVar[list[Path]] = []
    """The temporary folders of wandb in this process."""

    def __init__(
        self,
        folder: Path,
        tracker: TrackerConfig,
        settings: dict[str, object],
        tags: Sequence[str] = (),
        job_type: str = "run",
        warn: Warn = to_stderr,
    ) -> None:
        self._run: Any = None
        self._folder, self._job_type = folder, job_type
        self._warn, self._warned = warn, False
        self._guard(lambda: self._start(choose(tracker, folder, tags, job_type), settings))

    def _start(self, choice: Choice, settings: dict[str, object]) -> None:
        if choice.mode == "disabled":
            return
        wandb = _imported(self._folder / "wandb" / "tmp")
        before = set(self._folder.glob("wandb/run-*"))
        online = choice.mode == "online" and not WandbRun.online_failed
        try:
            self._run = self._init(wandb, choice, settings, "online" if online else "offline")
        except Exception as error:
            if not online:
                raise
            WandbRun.online_failed = True
            for folder in set(self._folder.glob("wandb/run-*")) - before:
                shutil.rmtree(folder, ignore_errors=True)
            self._say(f"wandb: {_first_line(error)}; the record is kept offline, for `wandb sync`")
            self._run = self._init(wandb, choice, settings, "offline")
        if self._job_type == "run":
            self._run.define_metric("*", step_metric="iteration")

    def _init(self, wandb: ModuleType, choice: Choice, settings: dict[str, object], mode: str) -> Run:
        return wandb.init(
            project=choice.project,
            entity=choice.entity,
            group=choice.group,
            job_type=self._job_type,
            name=choice.name,
            mode=mode,
            dir=str(self._folder),
            config=settings,
            tags=choice.tags,
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=CONNECT_S,
                login_timeout=CONNECT_S,
                x_transaction_log_flush_interval=1.0,
                x_stats_sampling_interval=SYSTEM_SAMPLE_S,
            ),
        )

    @property
    def where(self) -> str | None:
        """Folder of the offline record, or the run's page; None without wandb."""
        if self._run is None:
            return None
        return self._run.url or str(Path(self._run.dir).parent)

    def log(self, values: dict[str, object]) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.log(values))

    def log_media(self, images: Mapping[str, Path], tables: Mapping[str, pd.DataFrame]) -> None:
        """Log figures and tables, under their names."""
        if self._run is not None:
            with _temporary_folders():
                self._guard(lambda: self._log_media(images, tables))

    def _log_media(self, images: Mapping[str, Path], tables: Mapping[str, pd.DataFrame]) -> None:
        import wandb

        media: dict[str, object] = {name: wandb.Image(str(path)) for name, path in images.items()}
        for name, table in tables.items():
            rows = table.astype(object).where(table.notna(), None)
            rows = rows.map(lambda value: plain(value) if isinstance(value, str) else value)
            media[name] = wandb.Table(
                columns=list(rows.columns), data=rows.values.tolist(), allow_mixed_types=True
            )
        self._run.log(media)

    def log_files(self, paths: Sequence[Path]) -> None:
        """Log those of the files that are there as one artifact; they stay where they are."""
        if self._run is not None:
            self._guard(lambda: self._log_files(paths))

    def _log_files(self, paths: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self._job_type}-{self._run.id}", "results")
        for path in paths:
            if path.is_file():
                name = str(path.relative_to(self._folder))
                artifact.add_file(str(path), name=name, skip_cache=True, policy="immutable")
        self._run.log_artifact(artifact)

    def finish(self, summary: dict[str, object], exit_code: int = 0) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(summary))
            self._guard(lambda: self._run.finish(exit_code=exit_code))
            self._guard(self._check_space)
            self._run = None

    def _check_space(self) -> None:
        """Raise OSError if nothing more can be written. wandb would lose records without a message."""
        probe = Path(self._run.dir).parent / ".space"
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # tracking is a guest: any failure of it is reported, none is fatal
            self._say(f"wandb: {_first_line(error)}; it goes on, and the files are complete")

    def _say(self, text: str) -> None:
        if not self._warned:
            self._warn(text)
        self._warned = True


def _first_line(error: Exception) -> str:
    return plain((str(error).splitlines() or [type(error).__name__])[0])


def _imported(folder: Path) -> ModuleType:
    """Import wandb, have it make its temporary folders in `folder`, and remove them.

    Only figures and tables need them (`_temporary_folders`), and a process that is killed would leave them.
    """
    if "wandb" not in sys.modules:
        folder.mkdir(parents=True, exist_ok=True)
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            import wandb
        finally:
            tempfile.tempdir = before
            WandbRun.temporary = [*folder.iterdir()]
            shutil.rmtree(folder, ignore_errors=True)
    import wandb

    return wandb


@contextmanager
def _temporary_folders() -> Iterator[None]:
    """Have the folders that `_imported` removed for the time of a block."""
    for folder in WandbRun.temporary:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in WandbRun.temporary:
            shutil.rmtree(folder.parent, ignore_errors=True)
