"""Runs that are done, found again by what they were: so that a sweep goes on where it was interrupted.

One small file a run under outputs/completed/, written as the run ends. Everything that decides a run's
figures is in its name: the settings but for where results go, the machine, and the code itself.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ringexp.config import Config
from ringexp.tracking.environment import code_identity
from ringexp.tracking.files import CONFIG, RESULTS, read_results, write_atomically

_DECIDES_NOTHING = ("label", "output_root", "tracker", "launch", "dry_run", "resume", "report")


class CompletedRuns:
    """The index under one output root."""

    def __init__(self, root: Path, machine: dict[str, Any]) -> None:
        self._root, self._machine = root, machine

    def _path(self, config: Config) -> Path:
        settings = {name: value for name, value in asdict(config).items() if name not in _DECIDES_NOTHING}
        facts = {"settings": settings, "machine": self._machine, "code": code_identity()}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return self._root / f"{digest}.json"

    def add(self, config: Config, run_dir: Path) -> None:
        """Remember that `run_dir` has the complete results of this config."""
        write_atomically(self._path(config), json.dumps({"run_dir": str(run_dir.absolute())}) + "\n")

    def find(self, config: Config) -> Path | None:
        """The folder of an equal run that is complete; None if there is none, or it is not there any more."""
        path = self._path(config)
        if not path.exists():
            return None
        run_dir = Path(json.loads(path.read_text(encoding="utf-8"))["run_dir"])
        results = read_results(run_dir)
        return run_dir if results and results["status"] == "complete" else None


def copy_results(source: Path, run_dir: Path) -> None:
    """Give a run that need not be made the results of the one before, which `resumed_from` names.

    In the folder of that very run there is nothing to do.
    """
    if run_dir.absolute() == source:
        return
    write_atomically(run_dir / CONFIG, (source / CONFIG).read_bytes())
    results = (read_results(source) or {}) | {"resumed_from": str(source)}
    write_atomically(run_dir / RESULTS, json.dumps(results, indent=2) + "\n")
