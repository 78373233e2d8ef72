"""Fault scenarios: what goes wrong in the room, when, and for how long.

One TOML file, one table a fault::

[[fault]]
target = "plant.silent_1"     # a parameter or a state of the plant (simulators/plant/state.py says which)
value = 1                     # or `scale = 3.0`, or `add = 2.0`
at_s = 12.5                   # from the arming of the first layer; or `after_visits = 300`: completed visits
for_s = 0.2                   # optional: then the old value comes back
ramp_s = 30.0                 # optional, with `add`: a drift, which takes so long to reach its value

[[fault]]
target = "wire.gantry"        # a device of the site
kind = "cut"                  # cut, drop, delay (with delay_s), corrupt, duplicate
after_visits = 10

[[fault]]
target = "gantry.creep_deg_per_s"   # an attribute of a slow device: gantry, couch, nozzle, gating
value = 0.5
at_s = 3.0
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivers.errors import BadInput
from drivers.wires.faults import FaultKind
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
    "gating": ("fault", "source"),
}
"""What can go wrong in the slow devices (simulators/devices): attributes of each."""
_KEYS = {"target", "value", "scale", "add", "at_s", "after_visits", "for_s", "ramp_s", "kind", "delay_s"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a scenario."""

    kind: str
    """plant, wire or device"""
    name: str
    """Field of the plant, device of the wire, or device.attribute."""
    how: str
    """value, scale, add, or the kind of a wire fault."""
    amount: float
    at_s: float | None
    after_visits: int | None
    for_s: float | None
    ramp_s: float | None = None
    """A drift of the plant: the time over which `add` grows to its amount."""


def load_faults(path: Path) -> tuple[Fault, ...]:
    """Read a scenario; raises `BadInput` that names the fault and the key."""
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path}: no fault scenario: {error}") from error
    entries = data.get("fault")
    if not isinstance(entries, list) or set(data) != {"fault"}:
        raise BadInput(f"{path}: want [[fault]] tables and nothing else")
    return tuple(_fault(entry, f"{path}: fault {number}") for number, entry in enumerate(entries, 1))


def _number(entry: dict[str, Any], key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or (value < 0 and key != "add"):
        raise BadInput(f"{where}: {key} must be a number, not negative; got {value!r}")
    return float(value)


def _fault(entry: Any, where: str) -> Fault:
    if not isinstance(entry, dict) or set(entry) - _KEYS or not isinstance(entry.get("target"), str):
        raise BadInput(f"{where}: want a table with a target and keys of {sorted(_KEYS)}")
    head, _, rest = entry["target"].partition(".")
    at_s = _number(entry, "at_s", where)
    after = _number(entry, "after_visits", where)
    if (at_s is None) == (after is None):
        raise BadInput(f"{where}: give exactly one of at_s and after_visits")
    if head == "wire":
        kind, how, amount = "wire", str(entry.get("kind")), _number(entry, "delay_s", where) or 0.0
        if rest not in DEVICE_NAMES or how not in {k.value for k in FaultKind}:
            raise BadInput(f"{where}: want target wire.<device> and a kind of {[k.value for k in FaultKind]}")
        if (how == "delay") != (amount > 0):
            raise BadInput(f"{where}: delay_s belongs to kind delay, and must be positive")
    else:
        hows = [key for key in ("value", "scale", "add") if key in entry]
        if len(hows) != 1:
            raise BadInput(f"{where}: give exactly one of value, scale and add")
        how, amount = hows[0], _number(entry, hows[0], where) or 0.0
        if head == "plant":
            kind = "plant"
            if rest not in (PARAMETERS.names or ()) and rest not in (STATE.names or ()):
                raise BadInput(f"{where}: the plant has no {rest!r}; see simulators/plant/state.py")
        elif head in SLOW_DEVICES:
            if rest not in SLOW_DEVICES[head]:
                raise BadInput(f"{where}: the {head} has no {rest!r}; it has {', '.join(SLOW_DEVICES[head])}")
            kind, rest = "device", entry["target"]
        else:
            raise BadInput(
                f"{where}: target {entry['target']!r} is none of plant.*, wire.*, {', '.join(SLOW_DEVICES)}.*"
            )
    ramp_s = _number(entry, "ramp_s", where)
    if ramp_s is not None and (kind != "plant" or how != "add" or not ramp_s > 0):
        raise BadInput(f"{where}: ramp_s belongs to `add` on a quantity of the plant, and must be positive")
    for_s = _number(entry, "for_s", where)
    return Fault(kind, rest, how, amount, at_s, None if after is None else int(after), for_s, ramp_s)


def changed(fault: Fault, old: float) -> float:
    """The value that a fault gives a quantity that was `old`."""
    if fault.how == "scale":
        return old * fault.amount
    return old + fault.amount if fault.how == "add" else fault.amount
