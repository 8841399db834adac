"""The commands run, sweep and plan: Hydra composes the settings, then the runs are carried out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ringexp.cli.arguments import prepared
from ringexp.cli.messages import hydra_line, is_expected, one_line, raised_by_hydra
from ringexp.cli.terminal import keep_printing
from ringexp.config import CONF_DIR, Config
from ringexp.configure.compose import from_hydra, grouped
from ringexp.configure.register import register
from ringexp.errors import UserError
from ringexp.interrupts import EXIT_CODE, Interrupts
from ringexp.printable import plain

if TYPE_CHECKING:
    from ringexp.report.console import Console
    from ringexp.tracking.outcomes import RunOutcome

CarryOut = Callable[[Sequence[tuple[Config, Path]], "Console"], "list[RunOutcome]"]
"""Carries out the runs of a sweep and returns their outcomes, as `app.execute`."""

LOCAL_LAUNCHERS = ("shared_ranks", "basic")
"""Launchers that may be chosen without -m, where Hydra uses none: a single run does the same."""

INTERRUPTED = "interrupted; what was measured is kept, and in a sweep the same command goes on"


@dataclass
class _CommandState:
    """The state that the command line keeps itself, since Hydra passes no values back."""

    exit_codes: list[int] = field(default_factory=list)  # of the runs that failed
    sweep_dir: Path | None = None
    report: bool = True  # whether a report is wanted at the end of the sweep
    config: Config | None = None  # of one of the sweep's runs


_state = _CommandState()


@hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    run_dir = output_dir()
    chosen = HydraConfig.get()
    if chosen.mode == RunMode.MULTIRUN:
        _state.sweep_dir = None if cfg.dry_run else Path(chosen.sweep.dir)
    launcher = chosen.runtime.choices["hydra/launcher"]
    try:
        if chosen.mode != RunMode.MULTIRUN and launcher not in LOCAL_LAUNCHERS:
            raise UserError(f"hydra/launcher={launcher} is for sweeps, also of one run: add -m (--multirun)")
        config = from_hydra(cfg)
        _state.report &= config.report and not config.dry_run
        _state.config = config
        from ringexp.app import run

        run(config, run_dir)
    except Exception as error:
        if not is_expected(error):
            raise
        _report(error, None if cfg.dry_run else run_dir)


def output_dir() -> Path:
    """Return the folder of the run that Hydra is composing or running."""
    return Path(HydraConfig.get().runtime.output_dir)


def sweep(composed: Sequence[tuple[DictConfig, Path]], carry_out: CarryOut) -> None:
    """Check and run all configs of a sweep together; each failure is reported and stops no other run."""
    from ringexp.app import run
    from ringexp.report.console import Console

    runs = []
    for cfg, run_dir in composed:
        try:
            config = from_hydra(cfg)
            if config.dry_run:
                run(config, run_dir)
                continue
            sweep_dir = _state.sweep_dir = run_dir.parent
            _state.report &= config.report
            _state.config = grouped(config, f"{sweep_dir.parent.name} {sweep_dir.name}")
            runs.append((_state.config, run_dir))
        except (UserError, OmegaConfBaseException) as error:
            _report(error, None if cfg.dry_run else run_dir)
    if not runs:
        return
    for (_, run_dir), outcome in zip(runs, carry_out(runs, Console()), strict=True):
        if isinstance(outcome, Exception):
            _report(outcome, run_dir)


def _report(error: Exception, run_dir: Path | None) -> None:
    """Print on stderr why a run failed, and note it in the run's folder; a dry run has none."""
    from ringexp.tracking.files import mark_ended

    if run_dir:
        mark_ended(run_dir, "failed", one_line(error))
    code = 2 if isinstance(error, UserError | OmegaConfBaseException) else 1
    _fail(one_line(error), code, run_dir if _state.sweep_dir else None)


def main() -> None:
    """Compose and run. Exit code 2: bad input, in one line; 1: a failed run; 130: an interrupt.

    In a sweep a failed run does not stop the others; the exit code is that of the first failure.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us instead of Hydra's own printer
    keep_printing()
    try:
        with Interrupts(again=lambda: os._exit(EXIT_CODE)) as interrupts:
            try:
                _compose_and_run()
            except KeyboardInterrupt:
                interrupts.closing()
                _state.report = False
                _fail(INTERRUPTED, EXIT_CODE)
            finally:
                if _state.sweep_dir:
                    from ringexp.report.sweep import summarize

                    summarize(_state.sweep_dir, _state.report, _state.config)
    except KeyboardInterrupt:  # while the sweep was summed up
        _fail(INTERRUPTED, EXIT_CODE)
    codes = _state.exit_codes
    sys.exit(EXIT_CODE if EXIT_CODE in codes else next(iter(codes), 0))


def _compose_and_run() -> None:
    """Hand the command line to Hydra; what is wrong with it ends in one line."""
    try:
        sys.argv[1:] = prepared(sys.argv[1:])
        register()
        _run()
    except (HydraException, OmegaConfBaseException, UserError) as error:
        _fail(one_line(error), 2)
    except Exception as error:
        if not raised_by_hydra(error):
            raise
        _fail(hydra_line(error), 2)


def _fail(message: str, code: int, run_dir: Path | None = None) -> None:
    where = f" in {run_dir.name}" if run_dir else ""
    print(f"ringexp: error{where}: {plain(message)}", file=sys.stderr)
    _state.exit_codes.append(code)
