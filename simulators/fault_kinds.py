"""The catalogue of faults, read from `faults.toml`: what can go wrong, where, how strongly, and what must follow.

The same table makes scenarios checkable (`simulators.faults`), playable (`simulators.fault_player`), testable (every
entry has an example and the interlock conditions that may be first-out after it) and readable (docs/faults.md).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CATALOGUE = Path(__file__).with_name("faults.toml")
SIDES = ("wire", "physics", "host", "operator")
CLOCKS = ("virtual", "real")
HOWS = ("value", "scale", "add", "ramp_per_s", "kind")
NO_TRIP = "none"
"""In `expected`: the treatment completes within its tolerances."""
REFUSED = "refused"
"""In `expected`: preparation refuses, nothing is delivered."""
_KEYS = {"side", "what", "expected", "clocks", "lasts", "parameters", "do", "example"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number or word that a scenario may give a fault."""

    name: str
    what: str
    unit: str
    default: float | str
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()
    """Words that may be given; empty: a number."""


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing that a fault does: `target` and amounts may name parameters."""

    target: str
    """plant.<field>, <slow device>.<attribute>, wire.<device>, frames.<stream>, permits, host or operator; {name}
    stands for a parameter."""
    how: str
    """value, scale, add or ramp_per_s of a number; kind of anything else."""
    amount: float | str
    """A number, the name of a parameter, or the kind."""
    times: float = 1.0
    """Factor on a parameter's value: a unit of the plant's over the parameter's."""
    settings: Mapping[str, float | str] | None = None
    """More settings of a wire, frame, host or operator fault: numbers or names of parameters."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One fault of the catalogue."""

    name: str
    side: str
    what: str
    expected: tuple[str, ...]
    """Conditions that may be first-out; `none`: the treatment completes."""
    clocks: tuple[str, ...]
    lasts: bool
    """It may be given `for_s`; else it happens once, or stays."""
    parameters: Mapping[str, Parameter]
    deeds: tuple[Deed, ...]
    example: Mapping[str, Any]
    """A scenario entry, without its name, that the tests play."""


def parse_catalogue(text: str) -> dict[str, Kind]:
    """Read a catalogue; raises ValueError that names the fault and the key."""
    return {name: _kind(name, entry) for name, entry in tomllib.loads(text).items()}


@cache
def catalogue() -> dict[str, Kind]:
    """The shipped catalogue by name."""
    return parse_catalogue(CATALOGUE.read_text(encoding="utf-8"))


def _kind(name: str, entry: Any) -> Kind:
    if not isinstance(entry, dict) or set(entry) - _KEYS:
        raise ValueError(f"fault {name}: want a table with keys of {sorted(_KEYS)}")
    missing = {"side", "what", "expected", "do", "example"} - set(entry)
    if missing:
        raise ValueError(f"fault {name}: no {', '.join(sorted(missing))}")
    if entry["side"] not in SIDES:
        raise ValueError(f"fault {name}: side is {entry['side']!r}, want one of {SIDES}")
    clocks = tuple(entry.get("clocks", CLOCKS))
    if not clocks or set(clocks) - set(CLOCKS):
        raise ValueError(f"fault {name}: clocks are {clocks}, want some of {CLOCKS}")
    parameters = {key: _parameter(f"fault {name}: {key}", key, p) for key, p in entry.get("parameters", {}).items()}
    deeds = tuple(_deed(f"fault {name}", deed, parameters) for deed in entry["do"])
    return Kind(
        name=name,
        side=entry["side"],
        what=entry["what"],
        expected=tuple(entry["expected"]),
        clocks=clocks,
        lasts=bool(entry.get("lasts", True)),
        parameters=parameters,
        deeds=deeds,
        example=entry["example"],
    )


def _parameter(where: str, name: str, entry: Mapping[str, Any]) -> Parameter:
    unknown = set(entry) - {"what", "unit", "default", "min", "max", "choices"}
    if unknown or "default" not in entry:
        raise ValueError(f"{where}: want a default, and keys what, unit, default, min, max, choices; got {entry}")
    return Parameter(
        name=name,
        what=entry.get("what", ""),
        unit=entry.get("unit", ""),
        default=entry["default"],
        least=float(entry.get("min", -math.inf)),
        most=float(entry.get("max", math.inf)),
        choices=tuple(entry.get("choices", ())),
    )


def _deed(where: str, entry: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> Deed:
    hows = [how for how in HOWS if how in entry]
    if len(hows) != 1 or "target" not in entry:
        raise ValueError(f"{where}: a deed wants a target and exactly one of {HOWS}; got {dict(entry)}")
    how = hows[0]
    amount = entry[how]
    settings = {key: value for key, value in entry.items() if key not in {"target", "times", *HOWS}}
    for value in (*settings.values(), *(() if how == "kind" else (amount,))):
        if isinstance(value, str) and value not in parameters:
            raise ValueError(f"{where}: {value!r} is no parameter of it")
    return Deed(entry["target"], how, amount, float(entry.get("times", 1.0)), settings)
