"""Writes docs/faults.md from the catalogue: `python -m simulators.faults_page > docs/faults.md`."""

from __future__ import annotations

import json
import sys
from typing import Any

from simulators.fault_kinds import SIDES, Kind, Parameter, catalogue
from simulators.fault_places import STATES

INTRODUCTION = """\
# Faults

Made from `simulators/faults.toml` by `python -m simulators.faults_page`; a test holds the two together, and another one
plays every example below in virtual time.

`spotwise deliver PLAN --site SITE --fault FILE` plays a scenario on the simulated room: a TOML file, one
`[[fault]]` table a fault, as many as wanted. A fault has a name, its parameters (those not given have their default),
a place, and, where it lasts, a duration:

```toml
[[fault]]
name = "spill_spike"
factor = 5
at = { field = 1, visit = 30 }
for_s = 0.005
```

A name, parameter, place or value that means nothing is refused with exit status 2, file and line, and the nearest that
does; `deliver` and `resume` also refuse a field, layer or visit that their plan does not have. The scenario and its
hash are in run.json, summary.json, the journal and the report, with the time at which each fault began and ended; a
fault that never fired is said on stderr and in the same places.

## Where a fault happens

`at` takes any of these; all that is given must hold. Numbers count from 1.

| key | the fault begins |
| --- | --- |
| `field`, `layer`, `visit` | when this field (layer, visit) of the plan is under way; a visit that was passed counts |
| `visits` | when so many visits have been completed since the first arming |
| `spill` | with this spill since the first arming |
| `state` | when the room is in this state, see below |
| `s` | so many seconds after all others hold; alone: after the first layer was armed |

| state | |
| --- | --- |
"""

SECTIONS = {
    "physics": "Physics: beam, magnets, monitors, room",
    "wire": "Wires: registers, serial lines, frames, permits",
    "host": "Host: the PC on which the controller runs",
    "operator": "Operator",
}
OUTRO = """
## Without a name

What the catalogue does not hold can be written down bare, with `target` instead of `name`: `plant.<field>` changes a
parameter or state of the plant (`simulators/plant/state.py`; `value`, `scale`, `add`, `ramp_per_s`), `wire.<device>`
does `kind` to its wire ([wires](wires.md)), `gantry.`, `couch.`, `nozzle.` and `gating.` change an attribute of a slow
device.
"""


def page() -> str:
    """The whole document."""
    states = "".join(f"| `{name}` | {what} |\n" for name, what in STATES.items())
    return INTRODUCTION + states + "\n" + "\n".join(_section(side) for side in sorted(SIDES, key=_order)) + OUTRO


def _order(side: str) -> int:
    return list(SECTIONS).index(side)


def _section(side: str) -> str:
    kinds = [kind for kind in catalogue().values() if kind.side == side]
    if not kinds:
        return ""
    lines = [f"## {SECTIONS[side]}", ""]
    for kind in kinds:
        lines += [f"### {kind.name}", "", _what(kind), ""]
        if kind.parameters:
            lines += ["| parameter | meaning | default | range |", "| --- | --- | --- | --- |"]
            lines += [_parameter(p) for p in kind.parameters.values()] + [""]
        lines += ["```toml", "[[fault]]", f'name = "{kind.name}"']
        lines += [f"{key} = {toml(value)}" for key, value in kind.example.items()]
        lines += ["```", ""]
    return "\n".join(lines)


def _what(kind: Kind) -> str:
    ends = ", ".join("completes" if e == "none" else e if e == "refused" else f"`{e}`" for e in kind.expected)
    text = f"{kind.what[0].upper()}{kind.what[1:]}. May end with: {ends}."
    if not kind.lasts:
        text += " Takes no `for_s`."
    return text if len(kind.clocks) > 1 else f"{text} Only with `--clock {kind.clocks[0]}`."


def _parameter(p: Parameter) -> str:
    if p.choices:
        return f"| `{p.name}` | {p.what} | `{p.default}` | {', '.join(p.choices)} |"
    unit = f" {p.unit}" if p.unit else ""
    return f"| `{p.name}` | {p.what} | {p.default:g}{unit} | {p.least:g} to {p.most:g}{unit} |"


def toml(value: Any) -> str:
    """A value of a scenario as TOML writes it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def entry(kind: Kind, **more: Any) -> str:
    """The example of a fault as a scenario; `more` replaces or adds keys."""
    pairs = {"name": kind.name, **kind.example, **more}
    return "[[fault]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in pairs.items())


if __name__ == "__main__":
    sys.stdout.write(page())
