"""Imports point downwards only, through all layers of the house, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
LAYERS = (
    "hydra_plugins",
    "cli",
    "app",
    "slurm",
    "launch",
    "simulate",
    "report",
    "web",
    "worker",
    "tracking",
    "api",
    "configure",
    "models",
    "calibration",
    "ring",
    "kernels",
    "hetero",
    "planning",
    "choices",
    "config",
    "ground",
)
"""From the top to the ground: a module may import what stands in its own layer or in one below."""
GROUND = ("atomic", "errors", "interrupts", "machine", "names", "printable", "stored")
"""Modules without a room of their own, which everyone may use."""


def modules() -> dict[str, Path]:
    """Return every module of the source tree by its dotted name."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the source tree that one of them imports anywhere, also inside functions."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                targets.add(full if full in known else str(node.module))
    return targets & set(known) - {name}


def layer(module: str) -> int:
    """Return how far below the top a module stands."""
    top, _, rest = module.partition(".")
    if top == "hydra_plugins":
        return 0
    room = rest.partition(".")[0]
    if module in ("ringexp", "ringexp.__main__"):
        room = "api" if module == "ringexp" else "cli"
    return LAYERS.index("ground" if room in GROUND else room)


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(name, path, known) for name, path in known.items()}


def test_no_module_imports_from_a_higher_layer():
    climbing = [
        f"{name} -> {target}"
        for name, targets in graph().items()
        for target in targets
        if layer(target) < layer(name)
    ]
    assert sorted(climbing) == []


def test_no_modules_import_each_other_in_a_circle():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_a_climbing_import_is_seen_inside_a_function(tmp_path):
    low = tmp_path / "low.py"
    low.write_text("def f():\n    from ringexp.app import run\n    return run\n")
    assert imported("ringexp.ring.low", low, modules()) == {"ringexp.app"}
    assert layer("ringexp.app") < layer("ringexp.ring.low")
