"""The armed field: which of its layers may run, and what is judged of it at every turn. Pure functions, no clock.

Nothing here permits: a finding is latched by the supervisor, and a permit leaves only where `is_fresh` says so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from drivers.wires.guard_link import Wish
from interlocks import guard_digest as d
from interlocks.guard_agreement import Agreement
from interlocks.guard_judge import (
    Dose,
    Finding,
    Limits,
    Sensors,
    judge_age,
    judge_dose,
    judge_late,
    judge_monitor,
    judge_sensors,
    judge_unallowed,
    judge_visits,
)
from interlocks.guard_stream import Stream
from sites.schema import GuardRules, Site


@dataclass(frozen=True, slots=True)
class Armed:
    """The field that may have beam, and the layer that may run: none yet where `limits` is None."""

    field: int
    token: int
    offset_most_ns: int
    """So far electrometer 2's clock may fall behind while it is armed."""
    layer: int = -1
    allowed_ns: int = 0
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Ages:
    """How old what must come again and again may be. The first two withhold a permit, the others are latched."""

    wish_permits_ns: int
    frame_permits_ns: int
    wish_ns: int
    frame_ns: int
    sensors_ns: int


def ages_of(site: Site, rules: GuardRules, turn_s: float) -> Ages:
    """`turn_s`: between two turns; a frame that came just after the last but one is fresh."""
    permits = site.permits
    return Ages(
        wish_permits_ns=round(permits.lease_ms * 1e6),
        frame_permits_ns=round(max(permits.frame_age_max_ms, 2e3 * turn_s) * 1e6),
        wish_ns=round((permits.lease_ms + permits.time_out_ms) * 1e6),
        frame_ns=round(permits.stale_ms * 1e6),
        sensors_ns=round(rules.max_age_ms * 1e6),
    )


@dataclass(frozen=True, slots=True)
class Heard:
    """What the guard heard last, and when; None for never."""

    wish_ns: int | None = None
    stream: Stream | None = None
    sensors: Sensors | None = None


def allow(armed: Armed, wish: Wish, agreement: Agreement, now_ns: int) -> Armed | Finding:
    """What is armed once the controller has said which visits of which layer may run: layers only rise."""
    # a resumed layer may come in two: the rest of a visit by itself, then those after it
    again = wish.layer == armed.layer
    if again and (armed.limits is None or wish.first_visit <= armed.limits.last_visit):
        return armed  # said once more
    layers = len(agreement.expected[armed.field].layers)
    if not (again or armed.layer < wish.layer < layers):
        detail = f"layer {wish.layer + 1} after layer {armed.layer + 1} of {layers}"
        return Finding("GUARD_CONTROLLER", float(wish.layer), float(armed.layer), detail)
    limits = agreement.limits(armed.field, wish.layer)
    if not (limits.first_visit <= wish.first_visit and wish.last_visit <= limits.last_visit):
        detail = f"visits {wish.first_visit} to {wish.last_visit} allowed for layer {wish.layer + 1}"
        return Finding("GUARD_CONTROLLER", float(wish.last_visit), float(limits.last_visit), detail)
    limits = replace(limits, last_visit=wish.last_visit)
    return replace(armed, layer=wish.layer, allowed_ns=now_ns, limits=limits)


def is_fresh(heard: Heard, ages: Ages, now_ns: int) -> bool:
    """Controller and frames came lately enough for a permit; older, nothing is wrong yet, and nothing is permitted."""
    wish = _lately(heard.wish_ns, ages.wish_permits_ns, now_ns)
    made_ns = None if heard.stream is None else heard.stream.made_ns
    return wish and _lately(made_ns, ages.frame_permits_ns, now_ns)


def _lately(since_ns: int | None, limit_ns: int, now_ns: int) -> bool:
    return since_ns is not None and 0 <= now_ns - since_ns <= limit_ns


def judge_armed(
    site: Site, ages: Ages, armed: Armed, heard: Heard, digest: Sequence[int], dose: Dose, now_ns: int
) -> Finding | None:
    """The first thing that is wrong. `digest`: electrometer 2's frames; `dose`: what they make for this field."""
    stream = heard.stream
    came_ns = None if stream is None else stream.came_ns
    found = (
        judge_age("GUARD_CONTROLLER", now_ns, heard.wish_ns, ages.wish_ns, "nothing heard of the controller")
        or judge_age("GUARD_FRAMES", now_ns, came_ns, ages.frame_ns, "no frames of electrometer 2")
        or judge_late(stream, ages.frame_permits_ns, ages.frame_ns, now_ns)
        or judge_monitor(digest[d.FLAGS_ALL], digest[d.FLAGS_ANY], digest[d.RESTARTS], digest[d.FELL])
    )
    if found is not None:
        return found
    sensors = heard.sensors
    asked_ns = None if sensors is None else sensors.asked_ns
    found = judge_age("GUARD_CHAIN", now_ns, asked_ns, ages.sensors_ns, "no word of the chain's PLC")
    if found is not None or armed.limits is None or sensors is None:
        return found or judge_unallowed(digest[d.BEAM_NS])
    return (
        judge_visits(digest[d.VISIT], digest[d.AGAIN], armed.limits.last_visit)
        or judge_dose(dose, armed.limits, site.tolerances.secondary_spot_counts)
        or judge_sensors(sensors, armed.limits, armed.allowed_ns, site.accelerator.energy_sensor_tolerance_mev_u)
    )
