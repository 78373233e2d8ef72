"""Writes docs/safety/hazards.md from the analysis: `python -m interlocks.hazards_page > docs/safety/hazards.md`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from interlocks.conditions import matrix
from interlocks.hazards import Analysis, Scenario, Unsafe, analysis

INTRODUCTION = """\
# Hazards, and what answers them

Made from `interlocks/hazards.toml` by `python -m interlocks.hazards_page`; a test holds the two together, and another
that every condition, fault and test named here exists and that every condition of the matrix answers something.

The method is STPA (Leveson and Thomas, STPA Handbook, 2018) over the real structure of this program: who commands what,
how each command can hurt (missing, wrong, too early or late, too long or short), by what causes, and what answers
each. Spotwise is research software and no medical device; this page is how it is built, no claim of conformity.

Conditions are in [interlocks](../interlocks.md), faults in [faults](../faults.md), tests below `tests/`.
"""


def page(what: Analysis) -> str:
    """The whole document."""
    parts = [
        INTRODUCTION,
        "## Hazards\n",
        *_table(("hazard", "title", "harm"), [(h.id, h.title, h.harm) for h in what.hazards]),
    ]
    parts += ["", "## Control actions\n"]
    parts += _table(("action", "by", "to", "what"), [(a.id, a.by, a.to, a.what) for a in what.actions])
    parts += ["", "## Unsafe control actions\n"]
    for unsafe in what.unsafe:
        parts += _unsafe(unsafe)
    parts += ["## What each condition answers\n", *_conditions(what)]
    parts += ["", "## What a control PC cannot answer for\n"]
    parts += _table(("what", "who must"), [(o.what, o.who) for o in what.outside])
    parts += ["", "## Lessons of accidents\n"]
    parts += _table(
        ("accident", "lesson", "answered in"), [(a.what, a.lesson, ", ".join(a.answers)) for a in what.accidents]
    )
    return "\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _unsafe(unsafe: Unsafe) -> list[str]:
    head = f"### {unsafe.id}: {unsafe.what}\n"
    said = f"Control action {unsafe.action}, {unsafe.kind}; hazards {', '.join(unsafe.hazards)}.\n"
    rows = [_scenario(scenario) for scenario in unsafe.scenarios]
    return [head, said, *_table(("by what cause", "conditions", "provoked by", "shown by", "also"), rows), ""]


def _scenario(s: Scenario) -> tuple[str, ...]:
    code = [", ".join(f"`{name}`" for name in names) or "-" for names in (s.conditions, s.faults)]
    shown = ", ".join(f"`{test}`" for test in s.tests) or "-"
    return (s.how, *code, shown, s.also or "-")


def _conditions(what: Analysis) -> list[str]:
    rows = []
    for condition in matrix().values():
        answers = [u.id for u in what.unsafe if any(condition.id in s.conditions for s in u.scenarios)]
        rows.append((f"`{condition.id}`", " ".join(condition.hazards), ", ".join(answers) or "-"))
    return _table(("condition", "hazards", "unsafe control actions"), rows)


if __name__ == "__main__":
    sys.stdout.write(page(analysis()))
