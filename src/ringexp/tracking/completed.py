"""The index of complete runs, by which a sweep goes on where it was interrupted.

One small file per run under outputs/completed/, written as the run ends. Its name is the run's key, which
holds everything that decides the run's figures: the settings but for where results go, what prompt and
checkpoint contain, the machine, and the code itself. results.json has the key too, so a folder that another
run has written to meanwhile is not taken for this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ringexp.atomic import write_atomically
from ringexp.config import Config
from ringexp.stored import (
    JsonObject,
    JsonValue,
    Warn,
    an_object,
    digest,
    read_checked,
    text,
    to_stderr,
    write_json,
)
from ringexp.tracking.environment import code_identity
from ringexp.tracking.files import CONFIG, RESULTS, begin, read_record
from ringexp.tracking.schema import complete_record

_DECIDES_NOTHING = ("label", "output_root", "tracker", "launch", "dry_run", "resume", "report")
_PATHS = ("prompt_file", "prompt_text")
"""Settings for the prompt. The prompt's content is hashed, so the setting itself does not count."""


def fingerprint(config: Config, content: Mapping[str, str]) -> str:
    """Return 16 hex digits for what a run is, wherever it runs: its settings, content and code.

    Args:
        config: the run's settings.
        content: hashes of its prompt and checkpoint, by `content.content_of`.
    """
    settings = asdict(config)
    settings["model"].pop("checkpoint", None)
    settings = {name: value for name, value in settings.items() if name not in (*_DECIDES_NOTHING, *_PATHS)}
    return digest({"settings": settings, "content": dict(content), "code": code_identity()})


def run_key(of_run: str, machine: JsonObject) -> str:
    """Return the key of a run on a machine: its fingerprint, and a digest of what decides speed there.

    The machine's name is left out, since containers get a new one each time.
    """
    return f"{of_run}-{digest(_nameless(machine))}"


def _nameless(machine: JsonObject) -> JsonObject:
    facts = {name: value for name, value in machine.items() if name != "host"}
    nodes = facts.get("nodes")
    if isinstance(nodes, list):
        facts["nodes"] = [_nameless(node) for node in nodes if isinstance(node, dict)]
    return facts


class CompletedRuns:
    """The index under one output root, of runs on one machine."""

    def __init__(self, root: Path, machine: JsonObject, warn: Warn = to_stderr) -> None:
        self._root, self._machine, self._warn = root, machine, warn

    def _path(self, of_run: str) -> Path:
        return self._root / f"{run_key(of_run, self._machine)}.json"

    def add(self, of_run: str, run_dir: Path) -> bool:
        """Remember that `run_dir` has the complete results of a run.

        Nothing happens, and the next sweep measures the run anew, if its output is wrong, if a reference that
        it should be measured against failed, or if the index cannot be written. The last case prints a note.
        """
        record = read_record(run_dir)
        if record is None or not record.is_complete or not (record.key or "").startswith(f"{of_run}-"):
            return False
        if record.exact is False or record.content.get("missing_references"):
            return False
        try:
            write_json(self._path(of_run), {"run_dir": str(run_dir.absolute()), "key": record.key})
        except OSError as error:
            self._warn(
                f"{self._root} cannot be written ({error.strerror}): {run_dir.name} is complete, but a later "
                "sweep will not find it and measure it again"
            )
            return False
        return True

    def find(self, of_run: str) -> Path | None:
        """Return the folder of an equal run that is complete; None if there is none or the folder is gone."""
        entry = read_checked(self._path(of_run), _entry, self._warn)
        if entry is None:
            return None
        run_dir = Path(entry["run_dir"])
        record = read_checked(run_dir / RESULTS, complete_record, self._warn)
        if not record or not (run_dir / CONFIG).is_file():
            return None
        same = record.key == entry["key"] and entry["key"].startswith(f"{of_run}-")
        return run_dir if same else None


def _entry(value: JsonValue) -> dict[str, str]:
    entry = an_object(value, "the entry")
    return {name: text(entry[name], name) for name in ("run_dir", "key")}


def copy_results(source: Path, run_dir: Path) -> None:
    """Copy the results of an equal run into a run's folder; `resumed_from` names their origin.

    Nothing happens if both are the same folder.
    """
    if run_dir.absolute() == source.absolute():
        return
    begin(run_dir)
    write_atomically(run_dir / CONFIG, (source / CONFIG).read_bytes())
    record = read_record(source)
    write_json(run_dir / RESULTS, (record.content if record else {}) | {"resumed_from": str(source)})
