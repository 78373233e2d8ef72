"""The interlock matrix: conditions as data, schema-checked, the same table for judging, messages and documents."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

MATRIX = Path(__file__).with_name("matrix.toml")
PLACES = ("realtime", "task", "engine", "electrometer_2", "chain")


@dataclass(frozen=True, slots=True)
class Condition:
    """One row of the matrix."""

    id: str
    number: int | None
    """Of a condition that the real-time path latches."""
    where: str
    cause: str
    unit: str
    budget_ms: float
    hint: str
    escalate: bool
    """Close the stopper as well as dropping the permit."""


def parse_matrix(text: str) -> tuple[Condition, ...]:
    """Read a matrix; raises ValueError that names the condition and the key."""
    conditions = []
    for row in tomllib.loads(text)["condition"]:
        name = row.get("id", "?")
        unknown = set(row) - {"id", "number", "where", "cause", "unit", "budget_ms", "hint", "escalate"}
        if unknown:
            raise ValueError(f"condition {name}: unknown keys {sorted(unknown)}")
        missing = [key for key in ("id", "where", "cause", "unit", "budget_ms", "hint") if key not in row]
        if missing:
            raise ValueError(f"condition {name}: no {', '.join(missing)}")
        if not row["budget_ms"] > 0:
            raise ValueError(f"condition {name}: budget_ms is {row['budget_ms']}, want more than 0")
        if row["where"] not in PLACES:
            raise ValueError(f"condition {name}: where is {row['where']!r}, want one of {PLACES}")
        conditions.append(_condition(row))
    ids = [c.id for c in conditions]
    numbers = [c.number for c in conditions if c.number is not None]
    if len(set(ids)) != len(ids) or len(set(numbers)) != len(numbers):
        raise ValueError("condition ids and numbers must be unique")
    return tuple(conditions)


def _condition(row: dict[str, Any]) -> Condition:
    return Condition(
        id=str(row["id"]),
        number=row.get("number"),
        where=str(row["where"]),
        cause=str(row["cause"]),
        unit=str(row["unit"]),
        budget_ms=float(row["budget_ms"]),
        hint=str(row["hint"]),
        escalate=bool(row.get("escalate", False)),
    )


@cache
def matrix() -> dict[str, Condition]:
    """The shipped matrix by id."""
    return {c.id: c for c in parse_matrix(MATRIX.read_text(encoding="utf-8"))}


@cache
def by_number() -> dict[int, Condition]:
    """Conditions of the real-time path by number."""
    return {c.number: c for c in matrix().values() if c.number is not None}
