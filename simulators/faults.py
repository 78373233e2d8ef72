"""Fault scenarios: what goes wrong in a treatment, where, for how long and how strongly.

A TOML file, one table a fault. Faults have names and parameters (docs/faults.md lists them; `simulators/faults.toml`
is the catalogue) and a place (`simulators.fault_places`):

    [[fault]]
    name = "spill_spike"
    factor = 5
    at = { field = 1, visit = 30 }
    for_s = 0.005                         # optional: then what it changed comes back

What the catalogue has no name for can be written down bare:

    [[fault]]
    target = "plant.silent_1"             # a parameter or state of the plant (simulators/plant/state.py)
    value = 1                             # or `scale = 3.0`, `add = 2.0`, `ramp_per_s = 0.1`
    ramp_s = 30.0                         # optional, with `add`: a drift, which takes so long to reach its value
    at_s = 12.5                           # as at = { s = 12.5 }; or `after_visits = 300`, as at = { visits = 300 }

    [[fault]]
    target = "wire.gantry"                # a device of the site; kinds: drivers/wires/faults.py
    kind = "cut"
    at = { field = 2, layer = 1 }

    [[fault]]
    target = "gantry.creep_deg_per_s"     # an attribute of a slow device: gantry, couch, nozzle, gating
    value = 0.5
    at_s = 3.0
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivers.errors import BadInput
from drivers.wires.faults import FaultKind
from simulators.fault_kinds import HOWS, Deed, Kind, catalogue
from simulators.fault_places import Place, number, parse_place, suggestion
from simulators.plant.state import PARAMETERS, STATE
from sites.schema import DEVICE_NAMES

SLOW_DEVICES = {
    "gantry": ("creep_deg_per_s", "stuck", "fault"),
    "couch": (
        "stuck",
        "fault",
        *(
            f"axes.{axis}.{what}"
            for axis in ("vertical_mm", "longitudinal_mm", "lateral_mm", "rotation_deg", "pitch_deg", "roll_deg")
            for what in ("creep_per_s", "stuck")
        ),
    ),
    "nozzle": (
        "snout_code",
        "wrong_range_shifter_code",
        "range_shifter.stuck",
        "ripple_filter.stuck",
        "snout.creep_per_s",
        "snout.stuck",
        "fault",
    ),
    "gating": ("fault", "source", "stuck"),
}
"""What can go wrong in the slow devices (simulators/devices): attributes of each."""
_PLACING = {"at", "at_s", "after_visits", "for_s"}
_BARE = {"target", "kind", "delay_s", "value", "scale", "add", "ramp_per_s", "ramp_s"}


@dataclass(frozen=True, slots=True)
class Action:
    """One change that a fault makes."""

    kind: str
    """plant, wire, device, frames, permits, host or operator"""
    name: str
    """Field of the plant, device of the wire, device.attribute, number of the stream; else empty."""
    how: str
    """value, scale, add, ramp_per_s, or the kind of anything that is no number."""
    amount: float = 0.0
    settings: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a scenario."""

    name: str
    """Of the catalogue, or the bare target."""
    place: Place
    for_s: float | None
    actions: tuple[Action, ...]
    clocks: tuple[str, ...] = ("virtual", "real")
    parameters: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """All faults of a file, and the file itself for the record."""

    faults: tuple[Fault, ...]
    text: str = ""

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.faults)

    def __len__(self) -> int:
        return len(self.faults)

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def as_record(self) -> dict[str, str]:
        """What a record says of it: its text and hash."""
        return {"sha256": self.sha256, "text": self.text}

    def check_clock(self, clock: str, source: object) -> None:
        """Raise `BadInput` where a fault can only be played on the other clock."""
        for at, fault in enumerate(self.faults, 1):
            if clock not in fault.clocks:
                raise BadInput(f"{source}: fault {at}: {fault.name} can be played with --clock {fault.clocks[0]} only")


def load_faults(path: Path) -> Scenario:
    """Read a scenario; raises `BadInput` that names file, line, fault and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: no fault scenario: {error}") from error
    return parse_faults(text, str(path))


def parse_faults(text: str, source: str = "scenario") -> Scenario:
    """Read a scenario's text; raises `BadInput`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{source}: no fault scenario: {error}") from error
    entries = data.get("fault")
    if not isinstance(entries, list) or set(data) != {"fault"}:
        raise BadInput(f"{source}: want [[fault]] tables and nothing else")
    lines = _Lines(source, text)
    return Scenario(tuple(_fault(entry, lines, index) for index, entry in enumerate(entries)), text)


class _Lines:
    """Where a fault and its keys stand in the file."""

    def __init__(self, source: str, text: str) -> None:
        self._source = source
        self._keys: list[dict[str, int]] = []
        for at, line in enumerate(text.splitlines(), 1):
            if re.match(r"\s*\[\[\s*fault\s*\]\]", line):
                self._keys.append({"": at})
            elif self._keys and (key := re.match(r"\s*([A-Za-z0-9_-]+)\s*[=.]", line)):
                self._keys[-1].setdefault(key[1], at)

    def where(self, index: int, key: str = "") -> str:
        """`file, line 12: fault 3`."""
        keys = self._keys[index] if index < len(self._keys) else {}
        line = keys.get(key, keys.get(""))
        return f"{self._source}{'' if line is None else f', line {line}'}: fault {index + 1}"


def _fault(entry: Any, lines: _Lines, index: int) -> Fault:
    where = lines.where(index)
    if not isinstance(entry, dict) or not isinstance(entry.get("name", entry.get("target")), str):
        raise BadInput(f"{where}: want a table with the name of a fault (docs/faults.md), or with a target")
    if "name" in entry:
        return _named(entry, lines, index)
    for key in entry:
        if key not in _BARE | _PLACING:
            hint = suggestion(key, _BARE | _PLACING)
            raise BadInput(f"{lines.where(index, key)}: want a table with a target; no key {key!r}{hint}")
    return Fault(entry["target"], _place(entry, lines, index), _for_s(entry, where), (_bare(entry, where),))


def _place(entry: dict[str, Any], lines: _Lines, index: int) -> Place:
    given = [key for key in ("at", "at_s", "after_visits") if key in entry]
    if len(given) != 1:
        raise BadInput(f"{lines.where(index)}: give exactly one of at, at_s and after_visits")
    where = lines.where(index, given[0])
    if given[0] == "at_s":
        return Place(s=number(entry["at_s"], f"{where}: at_s"))
    if given[0] == "after_visits":
        return Place(visits=int(number(entry["after_visits"], f"{where}: after_visits")))
    if not isinstance(entry["at"], dict):
        raise BadInput(f"{where}: at must be a table such as {{ field = 1, visit = 30 }}; got {entry['at']!r}")
    return parse_place(entry["at"], where)


def _for_s(entry: dict[str, Any], where: str) -> float | None:
    return None if "for_s" not in entry else number(entry["for_s"], f"{where}: for_s")


def _named(entry: dict[str, Any], lines: _Lines, index: int) -> Fault:
    name = entry["name"]
    kind = catalogue().get(name)
    if kind is None:
        where = lines.where(index, "name")
        raise BadInput(f"{where}: no fault is called {name!r}{suggestion(name, catalogue())}; see docs/faults.md")
    allowed = {"name", *_PLACING, *kind.parameters}
    for key in entry:
        if key not in allowed:
            known = ", ".join(kind.parameters) or "none"
            hint = suggestion(key, allowed)
            raise BadInput(f"{lines.where(index, key)}: {name} has no parameter {key!r}{hint}; it has: {known}")
    values = {key: _parameter(kind, key, entry, lines, index) for key in kind.parameters}
    for_s = _for_s(entry, lines.where(index, "for_s"))
    if for_s is not None and not kind.lasts:
        raise BadInput(f"{lines.where(index, 'for_s')}: {name} takes no for_s: it happens once, or stays")
    actions = tuple(_action(deed, values) for deed in kind.deeds)
    return Fault(name, _place(entry, lines, index), for_s, actions, kind.clocks, values)


def _parameter(kind: Kind, key: str, entry: dict[str, Any], lines: _Lines, index: int) -> float | str:
    known = kind.parameters[key]
    value = entry.get(key, known.default)
    where = f"{lines.where(index, key)}: {kind.name}: {key}"
    if known.choices:
        if str(value) not in known.choices:
            hint = suggestion(str(value), known.choices)
            raise BadInput(f"{where} is {value!r}, want one of {', '.join(known.choices)}{hint}")
        return str(value)
    got = number(value, where, signed=True)
    if not known.least <= got <= known.most:
        raise BadInput(f"{where} is {got:g} {known.unit}, want {known.least:g} to {known.most:g}")
    return got


def _action(deed: Deed, values: Mapping[str, float | str]) -> Action:
    target = deed.target.format(**values)
    head, _, rest = target.partition(".")
    settings = {key: values.get(v, v) if isinstance(v, str) else v for key, v in (deed.settings or {}).items()}
    if head in ("plant", "wire", "frames", "permits", "host", "operator"):
        kind, name = head, rest
    else:
        kind, name = "device", target
    if deed.how == "kind":
        return Action(kind, name, str(deed.amount), 0.0, settings)
    amount = values[deed.amount] if isinstance(deed.amount, str) else deed.amount
    return Action(kind, name, deed.how, float(amount) * deed.times, settings)


def _bare(entry: dict[str, Any], where: str) -> Action:
    head, _, rest = entry["target"].partition(".")
    if head == "wire":
        how = str(entry.get("kind"))
        delay_s = number(entry.get("delay_s", 0.0), f"{where}: delay_s")
        kinds = [k.value for k in FaultKind]
        if rest not in DEVICE_NAMES or how not in kinds:
            raise BadInput(f"{where}: want target wire.<device> and a kind of {kinds}{suggestion(how, kinds)}")
        if how == "delay" and delay_s <= 0:
            raise BadInput(f"{where}: kind delay wants a positive delay_s")
        if delay_s and how not in ("delay", "torn"):
            raise BadInput(f"{where}: delay_s belongs to the kinds delay and torn")
        return Action("wire", rest, how, 0.0, {"delay_s": delay_s})
    hows = [key for key in HOWS[:-1] if key in entry]
    if len(hows) != 1 or "kind" in entry:
        raise BadInput(f"{where}: give exactly one of value, scale and add (or ramp_per_s)")
    how = hows[0]
    amount = number(entry[how], f"{where}: {how}", signed=how in ("add", "ramp_per_s"))
    settings: dict[str, float | str] = {}
    if "ramp_s" in entry:
        ramp_s = number(entry["ramp_s"], f"{where}: ramp_s")
        if head != "plant" or how != "add" or ramp_s <= 0:
            raise BadInput(f"{where}: ramp_s belongs to `add` on a quantity of the plant, and must be positive")
        settings = {"ramp_s": ramp_s}
    if head == "plant":
        fields = (*(PARAMETERS.names or ()), *(STATE.names or ()))
        if rest not in fields:
            raise BadInput(
                f"{where}: the plant has no {rest!r}{suggestion(rest, fields)}; see simulators/plant/state.py"
            )
        return Action("plant", rest, how, amount, settings)
    if head not in SLOW_DEVICES:
        known = ("plant.*", "wire.*", *(f"{name}.*" for name in SLOW_DEVICES))
        raise BadInput(f"{where}: target {entry['target']!r} is none of {', '.join(known)}")
    if rest not in SLOW_DEVICES[head]:
        hint = suggestion(rest, SLOW_DEVICES[head])
        raise BadInput(f"{where}: the {head} has no {rest!r}{hint}; it has {', '.join(SLOW_DEVICES[head])}")
    return Action("device", entry["target"], how, amount)


def is_ramp(action: Action) -> bool:
    """Whether what it changes goes on changing."""
    return action.how == "ramp_per_s" or "ramp_s" in action.settings


def changed(action: Action, old: float, elapsed_s: float = 0.0) -> float:
    """The value that an action gives a quantity that was `old` when the fault began `elapsed_s` ago."""
    if action.how == "scale":
        return old * action.amount
    if action.how == "ramp_per_s":
        return old + action.amount * elapsed_s
    if action.how == "add":
        ramp_s = float(action.settings.get("ramp_s", 0.0))
        return old + action.amount * (min(1.0, elapsed_s / ramp_s) if ramp_s else 1.0)
    return action.amount
