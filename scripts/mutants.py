"""The mutants of a Python file: copies of it that differ in one expression or statement.

| operator | change |
| --- | --- |
| compare | `<` and `<=`, `>` and `>=`, `==` and `!=`, `in` and `not in`, `is` and `is not` change places |
| arithmetic | `+` and `-`, `*` and `/` change places; `//` becomes `/`, `%` becomes `//`, `**` becomes `*` |
| boolean | one operand of `and` or `or` is left out; `not` and a minus sign are left out |
| condition | the condition of an `if` is always true, or always false |
| number | a whole number is one more, or one less; another one is doubled; True and False change places |
| call | `min` and `max`, `any` and `all` change places; `sorted`, `reversed` and `abs` do nothing |
| keyword | a keyword argument is left out |
| slice | a bound that is no number is one more |
| statement | a call, `raise` or assignment to an attribute or item is left out; `break` is `continue` |
| return | None is returned |
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Change = Callable[[ast.AST], None]
"""Turns a node into another one, in place."""

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "list"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    key: the same as long as the file and the change are. path: from the root of the tree. function: the line
    at which the function around it begins, 0 for none. node, variant: which node, and which of its changes.
    """

    key: str
    path: str
    line: int
    function: int
    node: int
    variant: int
    operator: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.operator}: {self.before}  ->  {self.after}"


def become(node: ast.AST, other: ast.AST) -> None:
    """Make a node what the other one is."""
    place = {name: getattr(node, name) for name in node._attributes if hasattr(node, name)}
    node.__class__ = other.__class__
    node.__dict__ = {**copy.deepcopy(other.__dict__), **place}


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """All changes of one node, with the operators' names."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if type(operator) in COMPARISONS:
                yield "compare", lambda n, p=place, o=operator: n.ops.__setitem__(p, COMPARISONS[type(o)]())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield "arithmetic", lambda n: setattr(n, "op", ARITHMETIC[type(n.op)]())
    elif isinstance(node, ast.BoolOp):
        for place in range(len(node.values)):
            yield "boolean", lambda n, p=place: without(n, p)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "boolean", lambda n: become(n, n.operand)
    elif isinstance(node, ast.Constant):
        yield from numbers(node)
    elif isinstance(node, ast.Call):
        yield from calls(node)
    elif isinstance(node, ast.Slice):
        for bound in ("lower", "upper"):
            if getattr(node, bound) is not None and not isinstance(getattr(node, bound), ast.Constant):
                yield "slice", lambda n, b=bound: setattr(n, b, one_more(getattr(n, b)))
    if isinstance(node, ast.If | ast.IfExp):
        for value in (True, False):
            yield "condition", lambda n, v=value: setattr(n, "test", ast.Constant(v))
    if isinstance(node, ast.comprehension):
        for place in range(len(node.ifs)):
            yield "condition", lambda n, p=place: n.ifs.pop(p)
    yield from statements(node)


def numbers(node: ast.Constant) -> Iterator[tuple[str, Change]]:
    if isinstance(node.value, bool):
        yield "number", lambda n: setattr(n, "value", not n.value)
    elif isinstance(node.value, int):
        yield "number", lambda n: setattr(n, "value", n.value + 1)
        yield "number", lambda n: become(n, expression(str(n.value - 1)))
    elif isinstance(node.value, float):
        yield "number", lambda n: setattr(n, "value", 2 * n.value if n.value else 1.0)


def calls(node: ast.Call) -> Iterator[tuple[str, Change]]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in CALLS:
        yield "call", lambda n: (setattr(n.func, "id", CALLS[n.func.id]), only_default(n))
    if name == "abs":
        yield "call", lambda n: become(n, n.args[0])
    for place, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "strict"):
            yield "keyword", lambda n, p=place: n.keywords.pop(p)


def only_default(node: ast.Call) -> None:
    """`list` takes no key."""
    if node.func.id == "list":  # type: ignore[attr-defined]
        node.keywords = []


def statements(node: ast.AST) -> Iterator[tuple[str, Change]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "statement", lambda n: become(n, ast.Pass())
    if isinstance(node, ast.AugAssign | ast.Raise):
        yield "statement", lambda n: become(n, ast.Pass())
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript):
        yield "statement", lambda n: become(n, ast.Pass())
    if isinstance(node, ast.Break | ast.Continue):
        other = ast.Continue() if isinstance(node, ast.Break) else ast.Break()
        yield "statement", lambda n: become(n, other)
    if isinstance(node, ast.Return) and not (node.value is None or isinstance(node.value, ast.Constant)):
        yield "return", lambda n: setattr(n, "value", ast.Constant(None))


def without(node: ast.BoolOp, place: int) -> None:
    del node.values[place]
    if len(node.values) == 1:
        become(node, node.values[0])


def one_more(bound: ast.expr) -> ast.expr:
    return ast.BinOp(bound, ast.Add(), ast.Constant(1))


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def left_alone(tree: ast.AST) -> set[ast.AST]:
    """Nodes in asserts, messages, annotations, decorators, and what only type checkers read."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        roots: list[ast.AST | None] = []
        if isinstance(node, ast.Assert | ast.JoinedStr) or for_type_checkers(node):
            roots = [node]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            roots = [node.annotation]
        elif isinstance(node, ast.keyword) and node.arg == "strict":  # an assertion about lengths
            roots = [node]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            roots = [*node.decorator_list, *([node.returns] if isinstance(node, ast.FunctionDef) else [])]
        for root in roots:
            found |= set(ast.walk(root)) if root is not None else set()
    return found


def functions(tree: ast.AST, around: int = 0) -> Iterator[tuple[ast.AST, int]]:
    """All nodes, each with the first line of the innermost function around it, decorators included."""
    for child in ast.iter_child_nodes(tree):
        inside = around
        if isinstance(child, ast.FunctionDef):
            inside = min([child.lineno, *(each.lineno for each in child.decorator_list)])
        yield child, inside
        yield from functions(child, inside)


def mutants_of(root: Path, path: Path) -> list[Mutant]:
    """All mutants of a file in the order of its nodes."""
    text = path.read_text()
    tree = ast.parse(text)
    skipped, around = left_alone(tree), dict(functions(tree))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    name = path.relative_to(root).as_posix()
    found = []
    for number, node in enumerate(ast.walk(tree)):
        if node in skipped:
            continue
        for variant, (operator, change) in enumerate(changes(node)):
            changed = copy.deepcopy(node)
            change(changed)
            line = getattr(node, "lineno", 0)
            found.append(
                Mutant(
                    f"{name}@{digest}:{number}.{variant}",
                    name,
                    line or min((x.lineno for x in ast.walk(node) if hasattr(x, "lineno")), default=0),
                    around.get(node, 0),
                    number,
                    variant,
                    operator,
                    head(node),
                    head(changed),
                )
            )
    return found


def head(node: ast.AST) -> str:
    """The first line of a node's text."""
    return ast.unparse(node).partition("\n")[0]


@contextmanager
def mutated(tree: Path, mutant: Mutant) -> Iterator[None]:
    """The file in `tree` is the mutant's as long as the context lasts."""
    path = tree / mutant.path
    kept = path.with_suffix(".kept")
    parsed = ast.parse(path.read_text())
    node = next(node for number, node in enumerate(ast.walk(parsed)) if number == mutant.node)
    list(changes(node))[mutant.variant][1](node)
    path.rename(kept)
    path.write_text(ast.unparse(ast.fix_missing_locations(parsed)))
    try:
        yield
    finally:
        kept.replace(path)  # with its time, so that the compiled module holds again
