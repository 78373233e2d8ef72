"""Wrongs done to the interlock matrix: each condition removed, or with a weaker action, latch, reset or place."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.mutants.changes import Change, short_hash

EDITS: tuple[tuple[str, str, str | Callable[[re.Match[str]], str]], ...] = (
    ("starts nothing instead of dropping", r'action = "drop"', 'action = "inhibit"'),
    ("drops instead of starting nothing", r'action = "inhibit"', 'action = "drop"'),
    ("does not latch", r"latch = true", "latch = false"),
    ("an operator may reset it", r'reset = "physicist"', 'reset = "operator"'),
    ("the stopper is not closed", r"escalate = true\n", ""),
    ("another number", r"number = (\d+)", r"number = 1\1"),
    ("judged by a task", r'where = "(?!task)\w+"', 'where = "task"'),
    ("judged by the guard", r'where = "task"', 'where = "guard"'),
    ("may take twice as long", r"budget_ms = (\d+)", lambda found: f"budget_ms = {2 * int(found[1])}"),
)


def matrix_changes(path: Path, root: Path) -> tuple[ast.Module, list[Change]]:
    """All changes; each node is the text of the whole matrix."""
    text = path.read_text(encoding="utf-8")
    return ast.Module([], []), list(_changes(text, str(path.relative_to(root))))


def _changes(text: str, file: str) -> Iterator[Change]:
    rows = re.split(r"(?m)^(?=\[\[condition\]\])", text)
    nothing: Any = ast.Pass()
    for number, row in enumerate(rows):
        found = re.search(r'^id = "(\w+)"', row, re.MULTILINE)
        if found is None:
            continue
        line = "".join(rows[:number]).count("\n") + 1
        edited = [("removed", "")] + [(what, re.sub(old, new, row, count=1)) for what, old, new in EDITS]
        for what, other in edited:
            if other != row:
                whole = "".join([*rows[:number], other, *rows[number + 1 :]])
                said = f"{found[1]}: {what}"
                yield Change(f"{file}: {said}", file, line, "", said, short_hash(row), nothing, "", None, whole)
