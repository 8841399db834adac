"""Offline wandb records, read back with wandb's own command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WANDB = Path(sys.executable).with_name("wandb")
"""The command of this environment, whatever is on PATH."""


def records(folder: Path) -> list[dict[str, Any]]:
    """Return all records of the one offline run below `folder`."""
    (record,) = (folder / "wandb").glob("offline-run-*")
    command = [WANDB, "leet", "inspect", "--json", str(record)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def run_record(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the run is: project, display_name, tags, and its config by name."""
    (run,) = (record["run"] for record in found if record["type"] == "run")
    return run | {"config": run["config"]["update"]}


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary that the record ends with."""
    values: dict[str, Any] = {}
    for record in found:
        if record["type"] == "summary":
            values |= record["summary"].get("update") or {}
    return values


def artifact_files(found: list[dict[str, Any]]) -> dict[str, Path]:
    """Return the files of the one artifact of ours by their names in it; wandb makes one per table, too."""
    artifacts = [record["artifact"] for record in found if record["type"] == "artifact"]
    (artifact,) = (artifact for artifact in artifacts if artifact["type"] != "run_table")
    return {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}
