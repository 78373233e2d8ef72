"""Writes docs/interlocks.md from the matrix: `python -m interlocks.matrix_page > docs/interlocks.md`."""

from __future__ import annotations

import sys

from interlocks.conditions import PLACES, Condition, matrix

INTRODUCTION = """\
# Interlocks

Made from `interlocks/matrix.toml` by `python -m interlocks.matrix_page`; a test holds the two together.

Each of these conditions trips: a drop leaves for the safety chain at once, permits end, and the trip latches. The
first one since the last reset is the first-out; later ones are recorded in their order. A reset needs the cause gone,
a named operator and a reason, and closes nothing: beam needs a new arming. A hold (gate closed, gap between spills) is
no trip and is not listed.

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
}


def page() -> str:
    """The whole document."""
    return "\n".join([INTRODUCTION, *(_section(place) for place in PLACES_IN_ORDER)])


PLACES_IN_ORDER = sorted(PLACES, key=list(SECTIONS).index)


def _section(place: str) -> str:
    rows = [condition for condition in matrix().values() if condition.where == place]
    numbered = place != "task"
    lines = [f"## {SECTIONS[place]}\n"]
    if numbered:
        lines += [
            "| number | condition | cause | unit | budget (ms) | what to do |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
    else:
        lines += ["| condition | cause | unit | budget (ms) | what to do |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(lines + [_row(condition, numbered) for condition in rows]) + "\n"


def _row(condition: Condition, numbered: bool) -> str:
    number = f"| {condition.number} " if numbered else ""
    cause = condition.cause + (" (closes the stopper as well)" if condition.escalate else "")
    return f"{number}| `{condition.id}` | {cause} | {condition.unit} | {condition.budget_ms:g} | {condition.hint} |"


if __name__ == "__main__":
    sys.stdout.write(page())
