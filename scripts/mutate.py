#!/usr/bin/env python3
"""Change the code in one place at a time and look whether a test notices: mutation testing.

    python scripts/mutate.py planning                  # every mutant of a group of modules
    python scripts/mutate.py ring --sample 300         # 300 of them, drawn by --seed
    python scripts/mutate.py planning --minutes 5      # stop after five minutes; the same command goes on
    python scripts/mutate.py planning --again          # run those again that no test noticed before
    python scripts/mutate.py planning --show           # the count of each outcome, and every survivor

`GROUPS` says which modules form a group and which tests have to notice. Each mutant is written into a copy
of the tree under build/mutation. A forked process then runs the tests that call the changed function until
one fails, those first that noticed most mutants before. Results are added to
build/mutation/GROUP/results.jsonl as they come. A mutant whose file has changed since is run again.

A mutant is `killed` if a test fails, `timeout` if a test does not end in time, `uncalled` if no test calls
the changed function, and `survived` if all tests pass. Asserts, messages, annotations and decorators are not
changed. Hypothesis does not shrink, and draws the same examples every time, so results repeat.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from forked_tests import prepare, run_tests
from mutants import Mutant, mutants_of, mutated

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutation"
COPIED = ("src", "tests", "conf", "scripts", "docs", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Group:
    """Modules that are changed, below src/ringexp, and the tests that have to notice, below tests.

    A name that begins with `!` is left out.
    preload: libraries that are imported once, before processes are forked. commands: tests that start the
    product as a command, so that their calls are not seen. test_s: the longest that one test may take.
    """

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    preload: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    test_s: int = 60


ADAPTIVE = ("planning/adaptive.py", "planning/estimate.py")
OF_ADAPTIVE = ("planning/test_adaptive.py", "planning/test_estimate.py")

GROUPS = {
    "planning": Group(
        ("planning/*.py", *(f"!{name}" for name in ADAPTIVE)),
        ("planning", *(f"!{name}" for name in OF_ADAPTIVE)),
    ),
    "adaptive": Group(ADAPTIVE, (*OF_ADAPTIVE, "planning/test_replanning.py")),
    "memory": Group(
        ("planning/memory.py",),
        ("planning/test_memory.py", "planning/test_decode.py", "models/test_memory.py"),
        ("torch", "fms", "omegaconf"),
    ),
    "ring": Group(
        ("ring/prefill.py", "ring/launches.py", "ring/transport.py", "ring/decode.py"),
        ("ring", "!ring/test_clock.py", "!ring/test_ipc.py"),
        ("torch", "torch.distributed"),
        test_s=12,
    ),
    "groups": Group(
        ("ring/groups.py", "ring/gloo.py", "ring/shards.py"),
        ("ring/test_groups.py", "ring/test_gloo.py", "ring/test_shards.py", "test_api.py"),
        ("torch", "torch.distributed"),
        test_s=12,
    ),
    "merge": Group(
        ("kernels/merge.py",),
        ("kernels/test_online_softmax.py", "kernels/test_merged_rows.py", "ring/test_prefill.py"),
        ("torch", "torch.distributed"),
        test_s=12,
    ),
    "tracking": Group(
        ("tracking/*.py", "launch/accuracy.py", "app.py"),
        ("tracking", "launch/test_accuracy.py", "test_app.py", "report/test_results.py"),
        ("torch", "fms", "pandas", "hydra", "omegaconf"),
        ("cli/test_run.py", "cli/test_experiments.py"),
    ),
}


@dataclass
class Baseline:
    """What every test of a group takes and calls while nothing is changed.

    calls: for each test the functions, as `path:line`. ranks: the tests that start processes, whose calls
    are not all seen.
    """

    digest: str
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, list[str]] = field(default_factory=dict)
    ranks: list[str] = field(default_factory=list)

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that call the changed function; if it is none, all that call anything."""
        place = f"{mutant.path}:{mutant.function}"
        alone = {test: calls for test, calls in self.calls.items() if calls and test not in self.ranks}
        return [test for test, calls in alone.items() if place in calls or not mutant.function] + self.ranks


def copy_tree(tree: Path) -> None:
    """Copy what tests need; the compiled modules of the copy are made once and never written again."""
    import compileall

    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tree / name)
    compileall.compile_dir(tree / "src", quiet=2)


def files_of(group: Group) -> list[Path]:
    """The modules that are changed."""
    source = ROOT / "src/ringexp"
    found = [path for pattern in group.modules for path in sorted(source.glob(pattern))]
    left_out = {source / pattern[1:] for pattern in group.modules if pattern.startswith("!")}
    return [path for path in found if path.name != "__init__.py" and path not in left_out]


def test_files(tree: Path, group: Group) -> list[Path]:
    """The files of the tests that have to notice; one that is not there is passed over."""
    places = [tree / "tests" / name for name in (*group.tests, *group.commands)]
    found = [
        path for each in places for path in (sorted(each.rglob("test_*.py")) if each.is_dir() else [each])
    ]
    left_out = {tree / "tests" / name[1:] for name in group.tests if name.startswith("!")}
    return [path for path in found if path.exists() and path not in left_out]


def names_of(tree: Path, group: Group) -> list[str]:
    return [str(path.relative_to(tree)) for path in test_files(tree, group)]


def digest_of(group: Group) -> str:
    """Names the state of a group's modules and tests."""
    found = hashlib.sha256()
    for path in [*files_of(group), *test_files(ROOT, group)]:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def baseline_of(tree: Path, group: Group) -> Baseline:
    """The tests of a group without any change; ends the program if they do not pass."""
    digest = digest_of(group)
    stored = tree.parent / "baseline.json"
    if stored.exists() and (known := Baseline(**json.loads(stored.read_text()))).digest == digest:
        return known
    sys.dont_write_bytecode = False  # what pytest makes of the tests is kept for the mutants
    noted = run_tests(tree, names_of(tree, group), None, 300, 900.0)
    sys.dont_write_bytecode = True
    if noted["outcome"] != "survived":
        sys.exit(f"the tests fail without any mutant: {noted}; see {tree.parent / 'last_output.txt'}")
    commands = tuple(f"tests/{name}::" for name in group.commands)
    unseen = [test for test in noted["seconds"] if test.startswith(commands)] if commands else []
    found = Baseline(digest, noted["seconds"], noted["calls"], noted["ranks"] + unseen)
    stored.write_text(json.dumps(asdict(found)))
    return found


def results_of(name: str) -> dict[str, dict[str, Any]]:
    """The results so far by the mutants' keys."""
    path = WORK / name / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {result["key"]: result for result in map(json.loads, lines)}


def drawn(group: Group, sample: int | None, seed: int) -> list[Mutant]:
    """All mutants of a group, or as many as asked for, the same ones for the same seed."""
    everything = [mutant for path in files_of(group) for mutant in mutants_of(ROOT, path)]
    if sample is not None:
        random.Random(seed).shuffle(everything)
    return everything[:sample]


def run_all(name: str, group: Group, mutants: list[Mutant], until: float, again: bool) -> None:
    """Run the mutants that have no result yet; with `again` those that other tests did not notice."""
    known, digest = results_of(name), digest_of(group)
    unnoticed = {
        key
        for key, result in known.items()
        if result["outcome"] in ("survived", "uncalled") and result.get("baseline") != digest
    }
    todo = [each for each in mutants if (each.key in unnoticed if again else each.key not in known)]
    print(f"{name}: {len(mutants)} mutants, {len(todo)} to run", flush=True)
    if not todo:
        return
    tree = WORK / name / "tree"
    copy_tree(tree)
    prepare(tree, group.preload)
    baseline = baseline_of(tree, group)
    kills = collections.Counter(result["test"] for result in known.values())
    for number, mutant in enumerate(todo, 1):
        if time.monotonic() > until:
            print(f"stopped; {len(todo) - number + 1} are left")
            return
        order = sorted(baseline.tests_of(mutant), key=lambda test: (-kills[test], baseline.seconds[test]))
        began, limit_s = time.monotonic(), 60.0 + 4 * sum(baseline.seconds[test] for test in order)
        with mutated(tree, mutant):
            files = sorted({test.partition("::")[0] for test in order})
            noted = {"outcome": "uncalled"}
            if order:
                noted = run_tests(tree, files, order, group.test_s, limit_s)
        result = {**asdict(mutant), "outcome": noted["outcome"], "test": noted.get("test", "")}
        result |= {"seconds": round(time.monotonic() - began, 2), "baseline": baseline.digest}
        kills[result["test"]] += noted["outcome"] == "killed"
        with open(WORK / name / "results.jsonl", "a") as output:
            output.write(json.dumps(result) + "\n")
        if noted["outcome"] != "killed":
            print(f"{number}/{len(todo)} {noted['outcome']}: {mutant}", flush=True)


def shown(name: str, mutants: list[Mutant]) -> Iterator[str]:
    """A table with the count of each outcome for every module, and all mutants that no test noticed."""
    known = results_of(name)
    columns = ("killed", "timeout", "survived", "uncalled")
    by_module: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for mutant in mutants:
        if mutant.key in known:
            by_module[mutant.path.removeprefix("src/ringexp/")][known[mutant.key]["outcome"]] += 1
    yield f"| module | run | {' | '.join(columns)} |\n|{' --- |' * (2 + len(columns))}"
    for module, outcomes in sorted(by_module.items()):
        counts = " | ".join(str(outcomes[column]) for column in columns)
        yield f"| {module} | {outcomes.total()} | {counts} |"
    yield f"{len(mutants)} mutants drawn"
    for mutant in sorted(mutants, key=lambda mutant: (mutant.path, mutant.line)):
        outcome = known.get(mutant.key, {}).get("outcome", "killed")
        if outcome != "killed":
            text = (ROOT / mutant.path).read_text().splitlines()[mutant.line - 1].strip()
            yield f"{outcome}: {mutant}    in: {text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--sample", type=int, help="how many mutants; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many")
    parser.add_argument("--only", default="", help="mutants whose file name holds this")
    parser.add_argument("--again", action="store_true", help="run those again that no test noticed before")
    parser.add_argument("--show", action="store_true", help="show results, run nothing")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
    until = time.monotonic() + 60 * asked.minutes
    group = GROUPS[asked.group]
    mutants = [each for each in drawn(group, asked.sample, asked.seed) if asked.only in each.path]
    if not asked.show:
        run_all(asked.group, group, mutants, until, asked.again)
    print("\n".join(shown(asked.group, mutants)))


if __name__ == "__main__":
    main()
