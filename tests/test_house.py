"""The rules that keep the source readable: sizes, types and the first words of docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
GLUON = ("hopper_courier.py", "hopper_epilogue.py", "hopper_kernel.py", "hopper_softmax.py")
"""Device code, whose language asks for long functions."""
NOUN_PHRASE = re.compile(r"(What|How|Of|Whether|As|Where)\s")


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_no_function_is_longer_than_60_lines():
    long = [
        f"{path.name}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path, tree in trees()
        if path.name not in GLUON
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []


def test_no_class_has_more_than_12_public_methods():
    wide = [
        f"{path.name}: {node.name} has {len(names)}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for names in [[m.name for m in node.body if isinstance(m, ast.FunctionDef) and m.name[0] != "_"]]
        if len(names) > 12
    ]
    assert wide == []


def test_the_ring_fits_one_screen():
    assert len((SOURCE / "ringexp" / "ring" / "loop.py").read_text(encoding="utf-8").splitlines()) <= 80


def test_any_is_rare():
    uses = [
        f"{path.name}:{node.lineno}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "Any"
    ]
    assert len(uses) <= 40, uses


def test_docstrings_open_with_a_sentence():
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    phrases = [
        f"{path.name}: {text.splitlines()[0]}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, documented) and (text := ast.get_docstring(node)) and NOUN_PHRASE.match(text)
    ]
    assert len(phrases) <= 15, phrases


def test_every_public_function_and_class_is_documented():
    bare = [
        f"{path.name}: {node.name}"
        for path, tree in trees()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert bare == []
