"""Wrongs done to the interlock matrix: each condition removed, renumbered, or with another action, latch or reset."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.mutants.changes import Change

EDITS: tuple[tuple[str, str, str], ...] = (
    ("another action", r'action = "drop"', 'action = "warn"'),
    ("starts nothing -> only warns", r'action = "inhibit"', 'action = "warn"'),
    ("does not latch", r"latch = true", "latch = false"),
    ("latches", r"latch = false", "latch = true"),
    ("an operator may reset it", r'reset = "physicist"', 'reset = "operator"'),
    ("only a physicist may reset it", r'reset = "operator"', 'reset = "physicist"'),
    ("the stopper is not closed", r"escalate = true\n", ""),
    ("another number", r"number = (\d+)", r"number = 1\1"),
    ("may take a hundred times as long", r"budget_ms = (\d+)\.0", r"budget_ms = \g<1>00.0"),
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
                yield Change(f"{file}: {said}", file, line, line, "", said, nothing, "", None, whole)
