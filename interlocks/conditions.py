"""The interlock matrix: conditions as data, schema-checked, the same table for judging, messages and documents."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

MATRIX = Path(__file__).with_name("matrix.toml")
PLACES = ("realtime", "task", "engine", "electrometer_2", "chain", "guard")
ACTIONS = ("drop", "inhibit")
"""drop: permit and beam off at once. inhibit: nothing starts. There is nothing milder: docs/decisions/0018."""
ROLES = ("operator", "physicist")
"""Who may reset; a physicist may reset what an operator may."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One row of the matrix."""

    id: str
    where: str
    cause: str
    hazards: tuple[str, ...]
    """What it protects from, as numbered in `hazards.toml`."""
    signals: str
    limit: str
    """The site's key, or the constant."""
    unit: str
    action: str
    latch: bool
    reset: str
    budget_ms: float
    """From the cause being visible at the PC to the drop leaving it."""
    hint: str
    number: int | None = None
    """Of a condition that the real-time path latches."""
    escalate: bool = False
    """Close the stopper as well as dropping the permit."""


KEYS = tuple(f.name for f in fields(Condition))
OPTIONAL = ("number", "escalate")


def parse_matrix(text: str) -> tuple[Condition, ...]:
    """Read a matrix; raises ValueError that names the condition and the key."""
    conditions = tuple(_condition(row) for row in tomllib.loads(text)["condition"])
    ids = [c.id for c in conditions]
    numbers = [c.number for c in conditions if c.number is not None]
    if len(set(ids)) != len(ids) or len(set(numbers)) != len(numbers):
        raise ValueError("condition ids and numbers must be unique")
    return conditions


def _condition(row: dict[str, Any]) -> Condition:
    name = row.get("id", "?")
    unknown = set(row) - set(KEYS)
    if unknown:
        raise ValueError(f"condition {name}: unknown keys {sorted(unknown)}")
    missing = [key for key in KEYS if key not in row and key not in OPTIONAL]
    if missing:
        raise ValueError(f"condition {name}: no {', '.join(missing)}")
    if not row["budget_ms"] > 0:
        raise ValueError(f"condition {name}: budget_ms is {row['budget_ms']}, want more than 0")
    for key, known in (("where", PLACES), ("action", ACTIONS), ("reset", ROLES)):
        if row[key] not in known:
            raise ValueError(f"condition {name}: {key} is {row[key]!r}, want one of {known}")
    if not row["hazards"]:
        raise ValueError(f"condition {name}: hazards is empty; what does it protect from?")
    return Condition(**{**row, "hazards": tuple(row["hazards"]), "budget_ms": float(row["budget_ms"])})


@cache
def matrix() -> dict[str, Condition]:
    """The shipped matrix by id."""
    return {c.id: c for c in parse_matrix(MATRIX.read_text(encoding="utf-8"))}


@cache
def by_number() -> dict[int, Condition]:
    """Conditions of the real-time path by number."""
    return {c.number: c for c in matrix().values() if c.number is not None}
