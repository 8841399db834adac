"""The command line: `python -m ringexp [overrides]`, composed and checked by Hydra."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from ringexp import config as settings
from ringexp.config import CONF_DIR
from ringexp.errors import UserError

if TYPE_CHECKING:
    from ringexp.app import Outcome
    from ringexp.report.console import Console

CarryOut = Callable[[Sequence[tuple[settings.Config, Path]], "Console"], "list[Outcome]"]
"""What runs the configs of a sweep and says what each came to; see `app.execute`."""

LOCAL_LAUNCHERS = ("shared_ranks", "basic")
"""Without -m Hydra uses no launcher, whatever is chosen; with these that makes no difference."""


@dataclass
class _Outcome:
    """What the runs of this process came to; Hydra passes no values back."""

    exit_codes: list[int] = field(default_factory=list)  # of the runs that failed
    sweep_dir: Path | None = None
    report: bool = True  # whether a report is wanted at the end of the sweep


_outcome = _Outcome()


@hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
def _run(cfg: Any) -> None:
    run_dir = output_dir()
    chosen = HydraConfig.get()
    if chosen.mode == RunMode.MULTIRUN:
        _outcome.sweep_dir = Path(chosen.sweep.dir)
    elif (launcher := chosen.runtime.choices["hydra/launcher"]) not in LOCAL_LAUNCHERS:
        raise UserError(f"hydra/launcher={launcher} is for sweeps, also of one run: add -m (--multirun)")
    try:
        config = settings.from_hydra(cfg)
        _outcome.report &= config.report and not config.dry_run
        from ringexp.app import run

        run(config, run_dir)
    except Exception as error:
        if not _expected(error):
            raise
        _report(error, run_dir)


def output_dir() -> Path:
    """The folder of the run that Hydra is composing or running."""
    return Path(HydraConfig.get().runtime.output_dir)


def sweep(composed: Sequence[tuple[Any, Path]], carry_out: CarryOut) -> None:
    """Check and run all configs of a sweep together; each failure is reported and stops no other run."""
    from ringexp.app import run
    from ringexp.report.console import Console

    if not composed:
        return
    sweep_dir = composed[0][1].parent
    runs = []
    for cfg, run_dir in composed:
        try:
            config = settings.from_hydra(cfg)
            if config.dry_run:
                run(config, run_dir)
                continue
            _outcome.sweep_dir = sweep_dir
            _outcome.report &= config.report
            runs.append((settings.grouped(config, f"{sweep_dir.parent.name} {sweep_dir.name}"), run_dir))
        except (UserError, OmegaConfBaseException) as error:
            _report(error, run_dir)
    for (_, run_dir), outcome in zip(runs, carry_out(runs, Console()), strict=True):
        if isinstance(outcome, Exception):
            _report(outcome, run_dir)


def _report(error: Exception, run_dir: Path) -> None:
    """Say on stderr why a run failed, and leave it in the run's folder."""
    from ringexp.tracking.files import mark_ended

    mark_ended(run_dir, "failed", _one_line(error))
    code = 2 if isinstance(error, UserError | OmegaConfBaseException) else 1
    _fail(_one_line(error), code, run_dir if _outcome.sweep_dir else None)


def main() -> None:
    """Entry point. Bad input ends in one line on stderr and exit code 2, a failed run in 1, Ctrl-C in 130.

    In a sweep a failed run does not stop the others; the exit code is that of the first failure.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us instead of Hydra's own printer
    settings.register()
    try:
        _run()
    except (HydraException, OmegaConfBaseException, UserError) as error:
        _fail(_one_line(error), 2)
    except KeyboardInterrupt:
        _outcome.report = False
        _fail("interrupted; what was measured is kept, and in a sweep the same command goes on", 130)
    finally:
        if _outcome.sweep_dir:
            from ringexp.report.sweep import summarize

            summarize(_outcome.sweep_dir, _outcome.report)
    sys.exit(next(iter(_outcome.exit_codes), 0))


def _expected(error: Exception) -> bool:
    """Whether the message says it all, so that our own traceback would add nothing."""
    from ringexp.errors import RunFailed

    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    return isinstance(error, UserError | RunFailed | OmegaConfBaseException)


def _fail(message: str, code: int, run_dir: Path | None = None) -> None:
    where = f" in {run_dir.name}" if run_dir else ""
    print(f"ringexp: error{where}: {message}", file=sys.stderr)
    _outcome.exit_codes.append(code)


def _one_line(error: Exception) -> str:
    """An exception's message on one line; unknown keys and choices with the nearest known one."""
    from hydra.errors import ConfigCompositionException, MissingConfigException

    text = " ".join(str(error).split())
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        key = getattr(cause, "full_key", None) or ""
        if "is not in struct" in str(cause) or "not in " in str(cause):
            return settings.unknown_key(key, settings.known_keys())
        return f"{key}: {str(cause).splitlines()[0]}" if key else str(cause).splitlines()[0]
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        hint = settings.did_you_mean(choice, error.options)
        return f"{group}={choice} is unknown; choose one of {', '.join(error.options)}{hint}"
    if isinstance(error, OmegaConfBaseException):
        key = getattr(error, "full_key", None)
        first = str(error).splitlines()[0]
        if (refused := f"{UserError.__name__} raised while resolving interpolation: ") in first:
            return first.partition(refused)[2]
        return f"{key}: {first}" if key else first
    return text
