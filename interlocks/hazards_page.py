"""Writes docs/safety/hazards.md from the analysis: `python -m interlocks.hazards_page > docs/safety/hazards.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interlocks.conditions import matrix
from interlocks.hazards import Analysis, Scenario, Unsafe, analysis

CAMPAIGN = Path(__file__).parents[1] / "docs" / "safety" / "campaign.json"
"""Figures of the last campaign (docs/campaign.md)."""
Figures = Mapping[str, Any]

INTRODUCTION = """\
# Hazards, and what answers them

Made from `interlocks/hazards.toml` by `python -m interlocks.hazards_page`; a test holds the two together, and another
that every condition, fault and test named here exists and that every condition of the matrix answers something.

The method is STPA (Leveson and Thomas, STPA Handbook, 2018) over the real structure of this program: who commands what,
how each command can hurt (missing, wrong, too early or late, too long or short), by what causes, and what answers
each. Spotwise is research software and no medical device; this page is how it is built, no claim of conformity.

Conditions are in [interlocks](../interlocks.md), faults in [faults](../faults.md), tests below `tests/`. What was
measured is from the [campaign](campaign.md) of simulated treatments: *worst* is the most that any treatment with one of
the faults gave too much at the worst point, *reaction* from the cause at the PC to the open chain
([all of it](reactions.md)).
"""


def page(what: Analysis, figures: Figures) -> str:
    """The whole document. `figures`: of a campaign, as `campaign.json` has them."""
    parts = [
        INTRODUCTION,
        "## Hazards\n",
        *_table(("hazard", "title", "harm"), [(h.id, h.title, h.harm) for h in what.hazards]),
    ]
    parts += ["", "## Control actions\n"]
    parts += _table(("action", "by", "to", "what"), [(a.id, a.by, a.to, a.what) for a in what.actions])
    parts += ["", "## Unsafe control actions\n"]
    for unsafe in what.unsafe:
        parts += _unsafe(unsafe, figures)
    parts += ["## What each condition answers\n", *_conditions(what, figures)]
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


def _unsafe(unsafe: Unsafe, figures: Figures) -> list[str]:
    head = f"### {unsafe.id}: {unsafe.what}\n"
    said = f"Control action {unsafe.action}, {unsafe.kind}; hazards {', '.join(unsafe.hazards)}.\n"
    rows = [_scenario(scenario, figures) for scenario in unsafe.scenarios]
    head_row = ("by what cause", "conditions", "provoked by", "worst, mGy", "shown by", "also")
    return [head, said, *_table(head_row, rows), ""]


def _scenario(s: Scenario, figures: Figures) -> tuple[str, ...]:
    code = [", ".join(f"`{name}`" for name in names) or "-" for names in (s.conditions, s.faults)]
    shown = ", ".join(f"`{test}`" for test in s.tests) or "-"
    played = [figures["by_fault"][name]["worst_overdose_gy"] for name in s.faults if name in figures["by_fault"]]
    worst = f"{1e3 * max(played):.3g}" if played else "-"
    return (s.how, *code, worst, shown, s.also or "-")


def _conditions(what: Analysis, figures: Figures) -> list[str]:
    rows = []
    for condition in matrix().values():
        answers = [u.id for u in what.unsafe if any(condition.id in s.conditions for s in u.scenarios)]
        reaction = figures["by_condition"].get(condition.id, {}).get("trip_to_open_ms")
        measured = [f"{reaction[key]:.3g}" for key in ("p50", "max")] if reaction else ["-", "-"]
        hazards = " ".join(condition.hazards)
        rows.append((f"`{condition.id}`", hazards, ", ".join(answers) or "-", f"{condition.budget_ms:g}", *measured))
    return _table(("condition", "hazards", "unsafe control actions", "budget, ms", "reaction, p50", "max"), rows)


if __name__ == "__main__":
    sys.stdout.write(page(analysis(), json.loads(CAMPAIGN.read_text(encoding="utf-8"))))
