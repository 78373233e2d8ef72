"""Judgements of the interlock task: pure functions of what the devices last said and what the field needs.

No I/O, no clock: the time is an argument. A status that is missing or older than its device allows is a fault of its
own; nothing is ever assumed in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from drivers.contracts import (
    AcceleratorStatus,
    ChainStatus,
    CouchStatus,
    GantryStatus,
    GatingStatus,
    NozzleStatus,
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the room must be like while this field may have beam; None: not judged now."""

    gantry_deg: float | None = None
    gantry_tolerance_deg: float = 0.0
    couch: CouchStatus | None = None
    """Read-back at the end of the set-up."""
    couch_tolerance_mm: float = 0.0
    couch_tolerance_deg: float = 0.0
    nozzle: NozzleStatus | None = None
    snout_tolerance_mm: float = 0.0
    gating_source: int | None = None
    energy_mev_u: float | None = None
    """Set while a layer of this energy may have beam."""
    energy_tolerance_mev_u: float = 0.0
    ion: str | None = None
    port_deg: float | None = None
    request_id: int | None = None
    hold_max_s: float = 0.0
    holds_max: int = 0
    chain: bool = False
    """The chain's inputs must be good."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A device's last status, and how old it may be."""

    status: Any
    t_ns: int
    max_age_ns: int
    beat_ns: int
    """Time of the status with which the device's heartbeat last counted on."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A condition that holds now."""

    id: str
    value: float | None
    limit: float | None
    detail: str


def judge(
    seen: Mapping[str, Seen], expected: Expected, now_ns: int, *, hold_s: float = 0.0, holds: int = 0
) -> list[Violation]:
    """All slow conditions; `seen` must have every device that the site has.

    A device that something is expected of and that is not in `seen` is a violation, as is a status from the future.
    """
    found = [
        Violation("STATUS_STALE", (now_ns - s.t_ns) * 1e-6, s.max_age_ns * 1e-6, name)
        for name, s in seen.items()
        if not 0 <= now_ns - s.t_ns <= s.max_age_ns
    ]
    # what a hung device answers is as old as its last heartbeat, however fresh the answer
    found += [
        Violation("STATUS_FROZEN", (s.t_ns - s.beat_ns) * 1e-6, s.max_age_ns * 1e-6, name)
        for name, s in seen.items()
        if not 0 <= s.t_ns - s.beat_ns <= s.max_age_ns
    ]
    for name, rule in (
        ("gantry", _gantry),
        ("couch", _couch),
        ("nozzle", _nozzle),
        ("gating", _gating),
        ("accelerator", _accelerator),
        ("safety_chain", _chain),
    ):
        if name in seen:
            found += rule(seen[name].status, expected)
        elif _needed(name, expected):
            found.append(Violation("STATUS_STALE", None, None, f"{name}: no status at all"))
    if expected.hold_max_s > 0 and not hold_s <= expected.hold_max_s:
        found.append(Violation("HOLD_TOO_LONG", hold_s, expected.hold_max_s, ""))
    if expected.holds_max > 0 and holds > expected.holds_max:
        found.append(Violation("HOLD_TOO_LONG", float(holds), float(expected.holds_max), "number of holds"))
    return found


def judge_identities(asked_ns: Mapping[str, int], names: Iterable[str], now_ns: int, limit_ns: int) -> list[Violation]:
    """Whether each device said of late who it is; `asked_ns`: when it was asked for what it said last.

    One that never said it, or said it in the future, is a violation as well.
    """
    found = []
    for name in names:
        if name not in asked_ns:
            found.append(Violation("STATUS_STALE", None, None, f"identity of {name}: none at all"))
        elif not 0 <= now_ns - asked_ns[name] <= limit_ns:
            age_ms = (now_ns - asked_ns[name]) * 1e-6
            found.append(Violation("STATUS_STALE", age_ms, limit_ns * 1e-6, f"identity of {name}"))
    return found


def judge_frames(newest_ns: int, now_ns: int, limit_ns: int) -> list[Violation]:
    """Whether the real-time path still takes frames in; `newest_ns`: when it took in its last, of any stream.

    It judges silent streams itself, and sooner (permits.stale_ms): what is silent for longer it has not judged. Its
    thread may have taken one in since the task read the clock.
    """
    if now_ns - newest_ns <= limit_ns:
        return []
    return [Violation("REALTIME_SILENT", (now_ns - newest_ns) * 1e-6, limit_ns * 1e-6, "")]


def _needed(name: str, expected: Expected) -> bool:
    """Is something expected that only this device can say: then its silence is a fault."""
    e = expected
    wanted: dict[str, tuple[object, ...]] = {
        "gantry": (e.gantry_deg,),
        "couch": (e.couch,),
        "nozzle": (e.nozzle,),
        "gating": (e.gating_source,),
        "accelerator": (e.request_id,),
        "safety_chain": (e.port_deg, e.energy_mev_u, e.chain or None),
    }
    return any(value is not None for value in wanted[name])


def _outside(value: float, wanted: float, tolerance: float) -> bool:
    # written so that NaN is outside
    return not abs(value - wanted) <= tolerance


def angle_difference(a_deg: float, b_deg: float) -> float:
    """Smallest difference of two angles, 0 to 180 degrees."""
    return abs((a_deg - b_deg + 180.0) % 360.0 - 180.0)


def _gantry(status: GantryStatus, expected: Expected) -> list[Violation]:
    if expected.gantry_deg is None:
        return []
    off = angle_difference(status.angle_deg, expected.gantry_deg)
    if status.fault or status.moving or not off <= expected.gantry_tolerance_deg:
        detail = "fault" if status.fault else ("moving" if status.moving else "angle")
        return [Violation("GANTRY_MOVED", off, expected.gantry_tolerance_deg, detail)]
    return []


def _couch(status: CouchStatus, expected: Expected) -> list[Violation]:
    wanted = expected.couch
    if wanted is None:
        return []
    found = []
    for axis in ("vertical_mm", "longitudinal_mm", "lateral_mm", "rotation_deg", "pitch_deg", "roll_deg"):
        tolerance = expected.couch_tolerance_mm if axis.endswith("_mm") else expected.couch_tolerance_deg
        got, want = getattr(status, axis), getattr(wanted, axis)
        off = abs(got - want) if axis.endswith("_mm") else angle_difference(got, want)
        if not off <= tolerance:
            found.append(Violation("COUCH_MOVED", off, tolerance, axis))
    if status.fault or status.moving:
        found.append(Violation("COUCH_MOVED", None, None, "fault" if status.fault else "moving"))
    return found


def _nozzle(status: NozzleStatus, expected: Expected) -> list[Violation]:
    wanted = expected.nozzle
    if wanted is None:
        return []
    found = []
    for part in ("snout_code", "range_shifter_code", "ripple_filter_code"):
        got, want = getattr(status, part), getattr(wanted, part)
        if got != want:
            found.append(Violation("NOZZLE_WRONG", float(got), float(want), part))
    if _outside(status.snout_mm, wanted.snout_mm, expected.snout_tolerance_mm):
        found.append(Violation("NOZZLE_WRONG", status.snout_mm, wanted.snout_mm, "snout_mm"))
    if status.fault or status.moving:
        found.append(Violation("NOZZLE_WRONG", None, None, "fault" if status.fault else "moving"))
    return found


def _gating(status: GatingStatus, expected: Expected) -> list[Violation]:
    if expected.gating_source is None:
        return []
    if status.fault or status.source != expected.gating_source:
        return [Violation("GATING_FAULT", float(status.source), float(expected.gating_source), "source")]
    return []


def _accelerator(status: AcceleratorStatus, expected: Expected) -> list[Violation]:
    if status.state == 3:
        return [Violation("ACCELERATOR_STATE", 3.0, None, "fault")]
    if expected.request_id is not None and status.request_id != expected.request_id:
        return [Violation("ACCELERATOR_STATE", float(status.request_id), float(expected.request_id), "request id")]
    return []


def _chain(status: ChainStatus, expected: Expected) -> list[Violation]:
    found = []
    if expected.chain:
        for name, good in (
            ("emergency_stop", not status.emergency_stop),
            ("door_closed", status.door_closed),
            ("room_searched", status.room_searched),
            ("room_allocated", status.room_allocated),
        ):
            if not good:
                found.append(Violation("CHAIN_INPUT", None, None, name))
    if expected.port_deg is not None and not angle_difference(status.port_sensor_deg, expected.port_deg) <= 0.5:
        found.append(Violation("PORT_SENSOR", status.port_sensor_deg, expected.port_deg, ""))
    # the energy and ion sensors read 0 / none between spills: then there is no beam to judge; with beam, 0 is a fault
    if expected.energy_mev_u is not None and (status.energy_sensor_mev_u != 0 or status.beam_present):
        off = abs(status.energy_sensor_mev_u - expected.energy_mev_u)
        if not off <= expected.energy_tolerance_mev_u:
            found.append(Violation("ENERGY_SENSOR", off, expected.energy_tolerance_mev_u, ""))
        if expected.ion is not None and status.ion_sensor != expected.ion:
            found.append(Violation("ION_SENSOR", None, None, f"{status.ion_sensor}, wanted {expected.ion}"))
    return found
