"""Small wrongs done to a source file, one at a time: each is a protective mechanism that is gone or judges otherwise.

A change has an id that stays the same while lines move: the function, what was, what is, and which of its kind it is.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
SWAPPED = {"min": "max", "max": "min"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Change:
    """One wrong: the node of a syntax tree that is replaced, and by what."""

    id: str
    file: str
    line: int
    last_line: int
    function: str
    """Qualified name; '' for a constant of the module."""
    what: str
    owner: ast.AST
    field: str
    index: int | None
    node: Any


def changes_of(path: Path, root: Path) -> tuple[ast.Module, list[Change]]:
    """The tree of a file and everything that can be done to it, always in the same order."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    seen: Counter[str] = Counter()
    found = []
    for function, owner, field, index, old, new, what in _all(tree):
        key = f"{function or 'constant'}: {what}"
        seen[key] += 1
        identity = f"{path.relative_to(root)}: {key}" + (f" #{seen[key]}" if seen[key] > 1 else "")
        last = old.end_lineno if not isinstance(old, FUNCTIONS) else old.lineno
        found.append(
            Change(identity, str(path.relative_to(root)), old.lineno, last, function, what, owner, field, index, new)
        )
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


Found = tuple[str, ast.AST, str, int | None, Any, Any, str]


def _all(tree: ast.Module) -> Iterator[Found]:
    for statement in tree.body:
        if isinstance(statement, FUNCTIONS):
            yield from _function(statement, statement.name)
        elif isinstance(statement, ast.ClassDef):
            for inner in statement.body:
                if isinstance(inner, FUNCTIONS):
                    yield from _function(inner, f"{statement.name}.{inner.name}")
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            for owner, field, index, old, new, what in _node(statement, "value", None, statement.value):
                yield "", owner, field, index, old, new, f"{statement.targets[0].id}: {what}"


def _function(function: Any, name: str) -> Iterator[Found]:
    body = [s for s in function.body if not _is_text(s)]
    if not (len(body) == 1 and isinstance(body[0], ast.Return)):
        yield name, function, "body", None, function, [_at(function, ast.Return(None))], "nothing done"
    for index, statement in enumerate(function.body):
        for found in _node(function, "body", index, statement):
            yield (name, *found)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _at(old: Any, new: Any) -> Any:
    return ast.copy_location(new, old)


def _node(owner: ast.AST, field: str, index: int | None, node: Any) -> Iterator[tuple[Any, ...]]:
    """Changes of a node and of all below it; annotations and words for people are left alone."""
    if _is_text(node) or isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert):
        return
    for new, what in _replacements(node):
        yield owner, field, index, node, _at(node, new), what
    if isinstance(node, ast.Compare):
        for k, op in enumerate(node.ops):
            for other in COMPARISONS[type(op)]:
                ops: list[ast.cmpop] = [*node.ops[:k], other(), *node.ops[k + 1 :]]
                new = _at(node, ast.Compare(node.left, ops, node.comparators))
                yield owner, field, index, node, new, f"{ast.unparse(node)} -> {ast.unparse(new)}"
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        if isinstance(value, ast.expr | ast.stmt):
            yield from _node(node, name, None, value)
        elif isinstance(value, list):
            for k, item in enumerate(value):
                if isinstance(item, ast.expr | ast.stmt):
                    yield from _node(node, name, k, item)
                elif isinstance(item, ast.keyword):
                    yield from _node(item, "value", None, item.value)
                elif isinstance(item, ast.ExceptHandler):
                    for m, inner in enumerate(item.body):
                        yield from _node(item, "body", m, inner)
                elif isinstance(item, ast.withitem | ast.comprehension):
                    for inner_name, inner in ast.iter_fields(item):
                        if isinstance(inner, ast.expr):
                            yield from _node(item, inner_name, None, inner)


def _replacements(node: Any) -> Iterator[tuple[Any, str]]:
    text = ast.unparse(node) if isinstance(node, ast.expr | ast.stmt) else ""
    short = " ".join(text.split())[:90]
    if isinstance(node, ast.Expr | ast.AugAssign) or (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    ):
        yield ast.Pass(), f"without {short}"
    elif isinstance(node, ast.Return) and (
        isinstance(node.value, ast.Call) or (isinstance(node.value, ast.List) and node.value.elts)
    ):
        yield ast.Return(ast.List([], ast.Load()) if isinstance(node.value, ast.List) else None), f"no {short}"
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield ast.BoolOp(other, node.values), f"{short} -> and/or"
        for k in range(len(node.values)):
            rest = [*node.values[:k], *node.values[k + 1 :]]
            yield (rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)), f"{short} without part {k + 1}"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand, f"{short} -> {ast.unparse(node.operand)[:60]}"
    elif isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
        opposite = ast.UnaryOp(ast.Not(), node.test)
        kind = ast.If if isinstance(node, ast.If) else ast.IfExp
        yield kind(opposite, node.body, node.orelse), f"if {ast.unparse(node.test)[:60]} -> if not"
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        changed = ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
        yield changed, f"{short} -> {ast.unparse(changed)[:90]}"
    elif isinstance(node, ast.Constant):
        yield from _constants(node.value)
    elif isinstance(node, ast.Call):
        yield from _calls(node, short)


def _constants(value: Any) -> Iterator[tuple[Any, str]]:
    if isinstance(value, bool):
        yield ast.Constant(not value), f"{value} -> {not value}"
    elif isinstance(value, int):
        for other in (value + 1, value - 1, value * 2) if abs(value) > 1 else (value + 1,):
            yield ast.Constant(other), f"{value} -> {other}"
    elif isinstance(value, float):
        yield ast.Constant(value * 2 if value else 1.0), f"{value} -> {value * 2 if value else 1.0}"


def _calls(node: ast.Call, short: str) -> Iterator[tuple[Any, str]]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in SWAPPED:
        yield ast.Call(ast.Name(SWAPPED[name], ast.Load()), node.args, node.keywords), f"{short} -> {SWAPPED[name]}"
    if name == "abs":
        yield node.args[0], f"{short} without abs"
    if name == "latch":
        wrong = ast.BinOp(node.args[1], ast.Add(), ast.Constant(1))
        yield ast.Call(node.func, [node.args[0], wrong, *node.args[2:]], []), f"{short}: another number"
    simple = (ast.Name, ast.Attribute, ast.Constant)
    for k in range(len(node.args) - 1):
        a, b = node.args[k], node.args[k + 1]
        if isinstance(a, simple) and isinstance(b, simple) and ast.dump(a) != ast.dump(b) and name not in SWAPPED:
            swapped = [*node.args[:k], b, a, *node.args[k + 2 :]]
            what = f"{short}: {ast.unparse(a)} and {ast.unparse(b)} swapped"
            yield ast.Call(node.func, swapped, node.keywords), what
            break
