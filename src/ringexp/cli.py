"""The command line: `python -m ringexp [overrides]`, composed and checked by Hydra."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from ringexp import config as settings
from ringexp.errors import UserError

PACKAGED, SOURCE = Path(__file__).parent / "conf", Path(__file__).parents[2] / "conf"
CONF_DIR = PACKAGED if PACKAGED.is_dir() else SOURCE


@hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
def _run(cfg: Any) -> None:
    from ringexp.app import run

    config = settings.from_hydra(cfg)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    many = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        run(config, run_dir)
    except Exception as error:
        _remember_failure(run_dir, error)
        if many:  # the sweep goes on; Hydra raises it again at the end
            print(f"ringexp: {run_dir.name}: {_one_line(error)}", file=sys.stderr)
        raise


def main() -> None:
    """Entry point. Bad input ends in one line on stderr and exit code 2, a failed run in 1, Ctrl-C in 130."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us instead of Hydra's own printer
    settings.register()
    code = 0
    try:
        _run()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        code = _fail(_one_line(error), 2)
    except KeyboardInterrupt:
        code = _fail("interrupted; what was measured so far is in the run's folder", 130)
    except Exception as error:
        if not _explained(error):
            raise
        code = _fail(_one_line(error), 1)
    finally:
        _compare_sweep()
    sys.exit(code)


def _explained(error: Exception) -> bool:
    """Whether the message says it all, so that our own traceback would add nothing."""
    return type(error).__name__ in ("RankFailed", "SignalException") or isinstance(error, ArithmeticError)


def _fail(message: str, code: int) -> int:
    print(f"ringexp: error: {message}", file=sys.stderr)
    return code


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
        from difflib import get_close_matches

        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        near = get_close_matches(choice, list(error.options), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{group}={choice} is unknown; choose one of {', '.join(error.options)}{hint}"
    if isinstance(error, OmegaConfBaseException):
        key = getattr(error, "full_key", None)
        first = str(error).splitlines()[0]
        return f"{key}: {first}" if key else first
    return text


def _remember_failure(run_dir: Path, error: Exception) -> None:
    """Leave a results.json that says `failed` and why, unless rank 0 already did."""
    import json

    from ringexp.tracking.files import RESULTS, read_results, write_atomically

    if (read_results(run_dir) or {}).get("status") not in ("complete", "failed"):
        document = {"status": "failed", "reason": _one_line(error)}
        write_atomically(run_dir / RESULTS, json.dumps(document, indent=2) + "\n")


def _compare_sweep() -> None:
    """After a multirun, one table of all its runs, failed ones included."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    from ringexp.report.sweep import compare

    compare(Path(HydraConfig.get().sweep.dir))
