"""Hazards, unsafe control actions and their scenarios as data (`hazards.toml`), each with what answers it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HAZARDS = Path(__file__).with_name("hazards.toml")
KINDS = ("missing", "wrong", "too early", "too late", "too long", "too short")


@dataclass(frozen=True, slots=True)
class Hazard:
    """What can hurt."""

    id: str
    title: str
    harm: str


@dataclass(frozen=True, slots=True)
class Action:
    """One control action of the real structure."""

    id: str
    by: str
    to: str
    what: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to an unsafe control action, and what answers it."""

    how: str
    conditions: tuple[str, ...]
    """Of the matrix."""
    faults: tuple[str, ...]
    """Of the fault catalogue: how it is provoked."""
    tests: tuple[str, ...]
    """`file` or `file::function` below tests/."""
    also: str
    """Answers that are no condition."""


@dataclass(frozen=True, slots=True)
class Unsafe:
    """A control action that hurts."""

    id: str
    action: str
    kind: str
    what: str
    hazards: tuple[str, ...]
    scenarios: tuple[Scenario, ...]


@dataclass(frozen=True, slots=True)
class Outside:
    """What a control PC cannot answer for, and who must."""

    what: str
    who: str


@dataclass(frozen=True, slots=True)
class Accident:
    """Something that happened elsewhere, and what it teaches."""

    what: str
    lesson: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Analysis:
    """The whole file."""

    hazards: tuple[Hazard, ...]
    actions: tuple[Action, ...]
    unsafe: tuple[Unsafe, ...]
    outside: tuple[Outside, ...]
    accidents: tuple[Accident, ...]


def parse_analysis(text: str) -> Analysis:
    """Read an analysis; raises ValueError that names the row and what is wrong with it."""
    data = tomllib.loads(text)
    analysis = Analysis(
        tuple(Hazard(**row) for row in data["hazard"]),
        tuple(Action(**row) for row in data["action"]),
        tuple(_unsafe(row) for row in data["unsafe"]),
        tuple(Outside(**row) for row in data["outside"]),
        tuple(Accident(**{**row, "answers": tuple(row["answers"])}) for row in data["accident"]),
    )
    known = {h.id for h in analysis.hazards}
    actions = {a.id for a in analysis.actions}
    for unsafe in analysis.unsafe:
        if unsafe.kind not in KINDS:
            raise ValueError(f"{unsafe.id}: kind is {unsafe.kind!r}, want one of {KINDS}")
        if unsafe.action not in actions:
            raise ValueError(f"{unsafe.id}: there is no control action {unsafe.action!r}")
        if not unsafe.hazards or not set(unsafe.hazards) <= known:
            raise ValueError(f"{unsafe.id}: hazards {unsafe.hazards}, want some of {sorted(known)}")
        for scenario in unsafe.scenarios:
            if not (scenario.conditions or scenario.also or scenario.tests):
                raise ValueError(f"{unsafe.id}: nothing answers {scenario.how!r}")
    rows = {u.id for u in analysis.unsafe}
    for accident in analysis.accidents:
        if not set(accident.answers) <= rows:
            raise ValueError(f"{accident.what}: answers {accident.answers}, want some of {sorted(rows)}")
    return analysis


def _unsafe(row: dict[str, Any]) -> Unsafe:
    scenarios = tuple(
        Scenario(
            how=s["how"],
            conditions=tuple(s["conditions"]),
            faults=tuple(s["faults"]),
            tests=tuple(s["tests"]),
            also=s.get("also", ""),
        )
        for s in row["scenario"]
    )
    return Unsafe(row["id"], row["action"], row["kind"], row["what"], tuple(row["hazards"]), scenarios)


@cache
def analysis() -> Analysis:
    """The shipped analysis."""
    return parse_analysis(HAZARDS.read_text(encoding="utf-8"))
