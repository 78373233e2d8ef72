"""The kinds of wrong: what can be done to one node of a syntax tree. The page describes them (`page.OPERATORS`)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

EDGES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
}
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}
TELLS = ("event", "_event", "_tell_refused", "_warn", "print")
"""Calls that only say or write down; what they say is not protection."""
REPORTS = ("latch", "Finding", "Violation", "Difference", "Trip")
"""Calls whose arguments are what is told of a condition: only that they are made counts here."""

Found = tuple[ast.AST, str, int | None, Any, Any, str]
"""Owner, its field, index in it, what was, what is, in words."""


def at(old: Any, new: Any) -> Any:
    """The new node where the old one is."""
    return ast.copy_location(new, old)


def called(call: ast.Call) -> str:
    """The plain name of what is called."""
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def inside(node: Any) -> Iterator[tuple[Any, str, int | None, Any]]:
    """Statements and expressions just below a node; annotations, defaults and decorators are left alone."""
    if isinstance(node, ast.Call) and called(node) in REPORTS:
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "targets", "target"):
            continue
        if isinstance(value, ast.expr | ast.stmt):
            yield node, name, None, value
        for k, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, ast.expr | ast.stmt):
                yield node, name, k, item
            elif isinstance(item, ast.keyword):
                yield item, "value", None, item.value
            elif isinstance(item, ast.ExceptHandler):
                yield from ((item, "body", m, inner) for m, inner in enumerate(item.body))
            elif isinstance(item, ast.withitem):
                yield item, "context_expr", None, item.context_expr
            elif isinstance(item, ast.comprehension):
                yield item, "iter", None, item.iter
                yield from ((item, "ifs", m, inner) for m, inner in enumerate(item.ifs))


def shortened(owner: Any, field: str, value: Any) -> Iterator[Found]:
    """What is listed, or counted through, with one entry less."""
    if isinstance(value, ast.Tuple | ast.List | ast.Set) and len(value.elts) > 1:
        for k, one in enumerate(value.elts):
            fewer = type(value)(elts=[*value.elts[:k], *value.elts[k + 1 :]])
            if not isinstance(value, ast.Set):
                fewer.ctx = ast.Load()
            yield owner, field, None, one, at(value, fewer), f"without entry {_short(one)}"
    elif isinstance(value, ast.Dict) and len(value.keys) > 1:
        for k, key in enumerate(value.keys):
            keys, values = [*value.keys[:k], *value.keys[k + 1 :]], [*value.values[:k], *value.values[k + 1 :]]
            said = "more" if key is None else _short(key)
            yield owner, field, None, value.values[k], at(value, ast.Dict(keys, values)), f"without entry {said}"
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "range":
        last = len(value.args) - 1 if len(value.args) < 3 else 1
        less = ast.BinOp(value.args[last], ast.Sub(), ast.Constant(1))
        other = ast.Call(value.func, [*value.args[:last], less, *value.args[last + 1 :]], [])
        yield owner, field, None, value, at(value, other), f"{_short(value)} without its last"


def wrongs(node: Any, *, whole: bool, in_handler: bool) -> Iterator[tuple[Any, str]]:
    """What takes a node's place, in words. `whole`: a condition that is made constant elsewhere."""
    if isinstance(node, ast.stmt):
        yield from _statement(node, in_handler)
    elif isinstance(node, ast.Compare):
        yield from _comparison(node, whole)
    elif isinstance(node, ast.BoolOp):
        for k, part in enumerate(node.values):
            rest = [*node.values[:k], *node.values[k + 1 :]]
            yield (rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)), f"{_short(node)} without {_short(part)}"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and not whole:
        yield node.operand, f"{_short(node)} -> {_short(node.operand)}"
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body), f"{_short(node)} the other way round"
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        changed = ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
        yield changed, f"{_short(node)} -> {_short(changed)}"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = node.func.id
        if name in SWAPPED:
            yield (
                ast.Call(ast.Name(SWAPPED[name], ast.Load()), node.args, node.keywords),
                f"{_short(node)} -> {SWAPPED[name]}",
            )
        if name == "abs":
            yield node.args[0], f"{_short(node)} without abs"


def _statement(node: Any, in_handler: bool) -> Iterator[tuple[Any, str]]:
    if isinstance(node, ast.If):
        always = _leaves_with_nothing(node.body[-1])
        said = f"{'always' if always else 'never'}: if {_short(node.test)}"
        yield ast.If(ast.Constant(always), node.body, node.orelse), said
    elif isinstance(node, ast.Return):
        yield from _return(node)
    elif _does_something(node) or (isinstance(node, ast.Raise) and in_handler):
        yield ast.Pass(), f"without {_short(node)}"


def _leaves_with_nothing(last: ast.stmt) -> bool:
    """A way out that nothing is judged on: what comes after it is gone where it is always taken."""
    if isinstance(last, ast.Return):
        value = last.value
        empty = isinstance(value, ast.List | ast.Tuple) and not value.elts
        return value is None or empty or (isinstance(value, ast.Constant) and value.value in (None, ""))
    return isinstance(last, ast.Continue | ast.Break)


def _does_something(node: Any) -> bool:
    if isinstance(node, ast.Expr):
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        if not isinstance(call, ast.Call):
            return isinstance(call, ast.Yield | ast.YieldFrom)
        return called(call) not in TELLS
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    return isinstance(node, ast.AugAssign | ast.Break | ast.Continue)


def _return(node: ast.Return) -> Iterator[tuple[Any, str]]:
    value = node.value
    if isinstance(value, ast.List) and value.elts:
        yield ast.Return(ast.List([], ast.Load())), f"no {_short(node)}"
    elif isinstance(value, ast.Call):
        yield ast.Return(None), f"no {_short(node)}"
    elif isinstance(value, ast.Constant) and isinstance(value.value, bool):
        yield ast.Return(ast.Constant(not value.value)), f"{_short(node)} -> {not value.value}"
    elif isinstance(value, ast.Compare | ast.UnaryOp) or (
        isinstance(value, ast.BoolOp)
        and all(isinstance(v, ast.Compare | ast.UnaryOp | ast.BoolOp) for v in value.values)
    ):
        yield ast.Return(ast.Constant(True)), f"always true: {_short(node)}"
        yield ast.Return(ast.Constant(False)), f"never true: {_short(node)}"


def _comparison(node: ast.Compare, whole: bool) -> Iterator[tuple[Any, str]]:
    """The edge of each, and the limit doubled: what stands on the right, unless it is nothing to double."""
    for k, op in enumerate(node.ops):
        other = EDGES.get(type(op)) or (None if whole else OPPOSITE.get(type(op)))
        if other is not None:
            changed = ast.Compare(node.left, [*node.ops[:k], other(), *node.ops[k + 1 :]], node.comparators)
            yield changed, f"{_short(node)} -> {_short(changed)}"
        limit = node.comparators[k]
        nothing_to_double = (isinstance(limit, ast.Constant) and limit.value in (0, 1)) or _short(limit) == "math.inf"
        if type(op) in EDGES and limit is node.comparators[-1] and not nothing_to_double and not _is_constant(limit):
            twice = ast.BinOp(ast.Constant(2), ast.Mult(), limit)
            doubled = [*node.comparators[:k], twice, *node.comparators[k + 1 :]]
            yield ast.Compare(node.left, node.ops, doubled), f"{_short(node)}: {_short(limit)} doubled"


def _is_constant(node: ast.expr) -> bool:
    """A constant of a module, by its name: doubled where it is set."""
    return isinstance(node, ast.Name) and node.id.isupper()


def _short(node: Any) -> str:
    return " ".join(ast.unparse(node).split())[:90]
