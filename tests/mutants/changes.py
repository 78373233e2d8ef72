"""Small wrongs done to a source file, one at a time: each is a protective mechanism that is gone or judges otherwise.

What is done is in `operators`; here are the places. A change has an id that stays the same while lines move: the
function, what was, what is, and which of its kind it is.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from tests.mutants.operators import Found, at, inside, shortened, wrongs

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Change:
    """One wrong: the node of a syntax tree that is replaced, and by what."""

    id: str
    file: str
    line: int
    function: str
    """Qualified name; '' for a constant of the module."""
    what: str
    source: str
    """Hash of the function or the constant as it is: a result holds for this."""
    owner: ast.AST
    field: str
    index: int | None
    node: Any


def short_hash(text: str) -> str:
    """Enough to see that a text is another one."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def changes_of(path: Path, root: Path) -> tuple[ast.Module, list[Change]]:
    """The tree of a file and everything that can be done to it, always in the same order."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    file = str(path.relative_to(root))
    seen: Counter[str] = Counter()
    found = []
    for function, source, (owner, field, index, old, new, what) in _all(tree):
        key = f"{function or 'constant'}: {what}"
        seen[key] += 1
        identity = f"{file}: {key}" + (f" #{seen[key]}" if seen[key] > 1 else "")
        found.append(Change(identity, file, old.lineno, function, what, source, owner, field, index, new))
    return tree, found


def changed_code(tree: ast.Module, change: Change, file: str) -> CodeType:
    """The whole module compiled with the change; the tree is as it was afterwards."""
    container: Any = getattr(change.owner, change.field)
    if change.index is None:
        setattr(change.owner, change.field, change.node)
    else:
        old, container[change.index] = container[change.index], change.node
    try:
        return compile(ast.fix_missing_locations(tree), file, "exec")
    finally:
        if change.index is None:
            setattr(change.owner, change.field, container)
        else:
            container[change.index] = old


def _all(tree: ast.Module) -> Iterator[tuple[str, str, Found]]:
    for statement in tree.body:
        if isinstance(statement, FUNCTIONS):
            yield from _function(statement, statement.name)
        elif isinstance(statement, ast.ClassDef):
            for inner in statement.body:
                if isinstance(inner, FUNCTIONS) and inner.name != "__init__":
                    yield from _function(inner, f"{statement.name}.{inner.name}")
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            for owner, field, index, old, new, what in _constant(statement):
                name = statement.targets[0].id
                yield "", short_hash(ast.dump(statement)), (owner, field, index, old, new, f"{name}: {what}")


def _constant(statement: ast.Assign) -> Iterator[Found]:
    """A limit doubled, an entry of a table gone."""
    value = statement.value
    if isinstance(value, ast.Constant) and isinstance(value.value, int | float) and not isinstance(value.value, bool):
        yield statement, "value", None, value, at(value, ast.Constant(value.value * 2)), f"{value.value} doubled"
    yield from shortened(statement, "value", value)


def _function(function: Any, name: str) -> Iterator[tuple[str, str, Found]]:
    body = [s for s in function.body if not _is_text(s)]
    bare = copy.copy(function)
    bare.body = body
    source = short_hash(ast.dump(bare))
    if body and not (len(body) == 1 and isinstance(body[0], ast.Return)):
        nothing = at(function.body[0], ast.Return(None))
        yield name, source, (function, "body", None, function, [nothing], "nothing done")
    for index, statement in enumerate(function.body):
        for found in _node(function, "body", index, statement, whole=False):
            yield name, source, found


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _node(owner: ast.AST, field: str, index: int | None, node: Any, *, whole: bool) -> Iterator[Found]:
    """Changes of a node and of all below it. `whole`: it is a condition that is made constant already."""
    if _is_text(node) or isinstance(node, ast.JoinedStr | ast.Assert):
        return
    if not (isinstance(owner, ast.If) and len(owner.body) == 1 and field == "body"):  # else the condition says it
        for new, what in wrongs(node, whole=whole, in_handler=isinstance(owner, ast.ExceptHandler)):
            yield owner, field, index, node, at(node, new), what
    if isinstance(node, ast.Raise):
        return
    if isinstance(node, ast.For | ast.comprehension):
        yield from shortened(node, "iter", node.iter)
    for below_owner, below_field, below_index, below in inside(node):
        condition = below_field == "test" or isinstance(node, ast.BoolOp | ast.Return)
        yield from _node(below_owner, below_field, below_index, below, whole=condition)
