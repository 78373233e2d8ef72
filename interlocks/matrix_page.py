"""Writes docs/interlocks.md from the matrix: `python -m interlocks.matrix_page > docs/interlocks.md`."""

from __future__ import annotations

import sys

from interlocks.conditions import PLACES, Condition, matrix

INTRODUCTION = """\
# Interlocks

Made from `interlocks/matrix.toml` by `python -m interlocks.matrix_page`; a test holds the two together.

A condition with the action "drop" trips: a drop leaves for the safety chain at once, permits end, and the trip
latches. The first one since the last reset is the first-out; later ones are recorded in their order. A reset needs the
cause gone, a named person of the role in the table and a reason, and closes nothing: beam needs a new arming. A hold
(gate closed, gap between spills) is no trip and is not listed.

The letters H1 to H8 are the hazards of [safety](safety/hazards.md).

The budget runs from the cause being visible at the PC to the drop leaving it. When the beam is off after that is a
matter of the chain and the chopper.

What cannot be known counts as wrong: a frame that is missing, a status that is too old or from the future, a device
that has said nothing, a value that is no number.
"""

SECTIONS = {
    "realtime": "Judged with every frame, by the real-time path",
    "engine": "Reported by the spot engine, seen in its frames",
    "electrometer_2": "Reported by electrometer 2, seen in its frames",
    "chain": "Reported by the safety chain, seen in the scan controller's frames",
    "task": "Judged by tasks of the controller, from the devices' status",
    "guard": "Judged by the guard, a process of its own",
}
HEAD = ("condition", "cause", "signals", "limit", "unit", "hazards", "action", "reset by", "budget (ms)", "what to do")


def page() -> str:
    """The whole document."""
    return "\n".join([INTRODUCTION, *(_section(place) for place in sorted(PLACES, key=list(SECTIONS).index))])


def _section(place: str) -> str:
    rows = [condition for condition in matrix().values() if condition.where == place]
    if not rows:
        return f"## {SECTIONS[place]}\n\nNone.\n"
    numbered = any(condition.number is not None for condition in rows)
    head = ("number", *HEAD) if numbered else HEAD
    lines = [f"## {SECTIONS[place]}\n", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join(lines + [_row(condition, numbered) for condition in rows]) + "\n"


def _row(c: Condition, numbered: bool) -> str:
    action = c.action + (", and closes the stopper" if c.escalate else "") + ("" if c.latch else ", no latch")
    cells = [f"`{c.id}`", c.cause, c.signals, c.limit, c.unit, " ".join(c.hazards), action, c.reset]
    cells += [f"{c.budget_ms:g}", c.hint]
    return f"| {' | '.join([str(c.number), *cells] if numbered else cells)} |"


if __name__ == "__main__":
    sys.stdout.write(page())
