"""Where a fault happens: a place in a treatment, as a scenario writes it, and how to tell that it is reached.

    at = { s = 12.5 }                      # seconds after the first layer was armed
    at = { visits = 300 }                  # 300 visits completed since then
    at = { field = 2, visit = 40 }         # visit 40 of field 2 runs (or has run); numbers count from 1
    at = { field = 2, layer = 3 }          # its third layer is armed
    at = { spill = 5 }                     # the fifth spill since the first arming
    at = { field = 1, state = "arming" }   # what the room is doing, see `STATES`
    at = { field = 1, visit = 9, s = 0.5 } # all that is given must hold; then `s` seconds pass

Fields, layers and visits are those of the plan also where a later part of a treatment begins in the middle of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drivers.errors import BadInput

STATES = {
    "start": "the room is up, nobody has asked for anything",
    "prepared": "a controller has opened its session: devices are being prepared and set up",
    "arming": "the chain is armed, no layer is armed yet in this field",
    "armed": "a layer is armed and has not started",
    "changing_energy": "the accelerator changes to what was requested",
    "running": "the engine runs a layer",
    "beam": "there is beam",
    "held": "the engine is held, by the gate or a command",
    "layer_done": "the engine has ended a layer",
    "field_done": "the chain was opened after beam",
}
WHOLE = ("visits", "field", "layer", "visit", "spill")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fault begins; what is None is not asked for."""

    s: float | None = None
    visits: int | None = None
    field: int | None = None
    layer: int | None = None
    visit: int | None = None
    spill: int | None = None
    state: str | None = None

    @property
    def only_time(self) -> bool:
        """Nothing but seconds."""
        return self.s is not None and self == Place(s=self.s)

    def words(self) -> str:
        """The place for people."""
        found = [f"{name} {getattr(self, name)}" for name in (*WHOLE, "state") if getattr(self, name) is not None]
        if self.s is not None:
            found.append(f"{self.s:g} s")
        return ", ".join(found)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a treatment is: numbers count from 1, 0 before."""

    begun: bool
    visits: int
    field: int
    layer: int
    visit: int
    spill: int
    states: frozenset[str]


def reached(place: Place, here: Whereabouts) -> bool:
    """All but the seconds."""
    before_beam = place.state in ("start", "prepared", "arming", "armed", "changing_energy")
    if not here.begun and not before_beam:
        return False
    if place.field is not None and here.field != place.field:
        return False
    for name in ("visits", "visit", "spill"):
        wanted = getattr(place, name)
        if wanted is not None and getattr(here, name) < wanted:
            return False
    if place.layer is not None and here.layer != place.layer:
        return False
    return place.state is None or place.state in here.states


def parse_place(entry: Mapping[str, Any], where: str) -> Place:
    """Read `at = {...}`. Raises `BadInput`."""
    allowed = ("s", *WHOLE, "state")
    for key in entry:
        if key not in allowed:
            raise BadInput(f"{where}: at has no {key!r}{suggestion(key, allowed)}; it takes {', '.join(allowed)}")
    if not entry:
        raise BadInput(f"{where}: at is empty; give some of {', '.join(allowed)}")
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "state":
            if value not in STATES:
                hint = suggestion(str(value), STATES)
                raise BadInput(f"{where}: at.state {value!r} is none of {', '.join(STATES)}{hint}")
            values[key] = value
        elif key == "s":
            values[key] = number(value, f"{where}: at.s")
        else:
            least = 0 if key == "visits" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise BadInput(f"{where}: at.{key} must be a whole number from {least} on; got {value!r}")
            values[key] = value
    if "visits" in values and set(values) & {"field", "layer", "visit"}:
        raise BadInput(f"{where}: at.visits counts over all fields; give field and visit instead")
    return Place(**values)


def number(value: Any, what: str, *, signed: bool = False) -> float:
    """A finite number; raises `BadInput`."""
    right = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    if not right or (value < 0 and not signed):
        raise BadInput(f"{what} must be a number{'' if signed else ', not negative'}; got {value!r}")
    return float(value)


def suggestion(word: str, known: Any) -> str:
    """The nearest known word, as the end of a sentence."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
