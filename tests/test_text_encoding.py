"""Text is UTF-8 on every machine: no file or pipe is left to the locale."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("scripts/*.py")])


def left_to_the_locale(tree: ast.AST) -> Iterator[int]:
    """Yield the line numbers of calls that open text without naming its encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        name = called.rpartition(".")[2]
        keywords = {keyword.arg for keyword in node.keywords}
        binary = any("b" in str(getattr(argument, "value", "")) for argument in node.args[:2])
        opens = name in ("read_text", "write_text") or (
            name in ("open", "fdopen") and not binary and called not in ("os.open", "webbrowser.open")
        )
        pipes = "text" in keywords or "universal_newlines" in keywords
        if (opens or pipes) and "encoding" not in keywords:
            yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_names_its_encoding(path: Path) -> None:
    assert not list(left_to_the_locale(ast.parse(path.read_text(encoding="utf-8"))))


def test_the_check_sees_each_kind_of_call() -> None:
    calls = ("path.read_text()", "path.write_text(text)", "path.open('w')", "open(path)", "run(c, text=True)")
    assert all(list(left_to_the_locale(ast.parse(call))) for call in calls)
    named = ("path.read_text(encoding='utf-8')", "path.open('wb')", "open(path, 'rb')")
    assert not any(list(left_to_the_locale(ast.parse(call))) for call in named)
