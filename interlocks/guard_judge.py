"""The guard's judgements: pure functions of what it has seen itself and what its own reading of the plan allows.

No I/O, no clock. Each function returns the first thing that is wrong, or None; every comparison is written so that NaN
is wrong. What a limit is made of stands in `limits_of`, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from drivers.flags import FLAG_HV_OK, FLAG_SATURATED, FLAG_TRIPPED
from interlocks.guard_numbers import ExpectedField, counts_per_particle, recombination
from interlocks.guard_stream import Stream
from sites.schema import GuardRules, Site

FLANK_NS = 500_000
"""Charge drifts for eight lags after beam-off, and a frame with beam counts whole: so long a flank may seem beam."""
BEAM_FLOOR_NS = 20_000_000
RATE_SPAN_NS = 1_000_000
"""Rates are judged over this at least."""
PORT_TOLERANCE_DEG = 0.5
FALL_COUNTS = 10
"""Noise and a negative pedestal may take so many counts from one frame to the next."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something is wrong: a condition of the matrix with its numbers."""

    id: str
    value: float
    limit: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds while a layer may run."""

    first_visit: int
    last_visit: int
    counts: float
    """Cumulative over all parts, up to and with this layer."""
    beam_ns: float
    """Planned beam-on time so far times its factor, flanks not included."""
    rate_per_ns: float
    """Counts per ns."""
    energy_mev_u: float
    ion: str
    port_deg: float


@dataclass(frozen=True, slots=True)
class Dose:
    """What electrometer 2 has shown of a field, all parts."""

    counts: float
    """Less the pedestal."""
    beam_ns: int
    flanks: int
    turn_counts: float
    """Since the turn before."""
    turn_ns: int


@dataclass(frozen=True, slots=True)
class Sensors:
    """What the chain's PLC said last."""

    asked_ns: int
    beam_present: bool
    energy_mev_u: float
    ion: str
    port_deg: float


def limits_of(
    site: Site, rules: GuardRules, field: ExpectedField, layer: int, rates_per_s: tuple[float, ...], ktp: float
) -> Limits:
    """Limits while layer `layer` may run. `rates_per_s`: the intensity of each layer of the field."""
    tolerances = site.tolerances
    per_s = [
        rate * counts_per_particle(site, field.ion, one.energy_mev_u) / (ktp * recombination(site, rate))
        for one, rate in zip(field.layers, rates_per_s, strict=True)
    ]
    done = range(layer + 1)
    counts = sum(field.layers[k].counts_2 / (ktp * recombination(site, rates_per_s[k])) for k in done)
    beam_s = sum(field.layers[k].particles / rates_per_s[k] for k in done)
    now = field.layers[layer]
    late = per_s[layer] * site.accelerator.beam_off_delay_us * 1e-6
    return Limits(
        first_visit=now.first_visit,
        last_visit=now.first_visit + now.visits - 1,
        counts=counts * (1.0 + tolerances.field_dose) + tolerances.field_dose_counts + late,
        beam_ns=beam_s * rules.beam_time_factor * 1e9,
        # what a turn sees may still be of the layer before
        rate_per_ns=tolerances.rate_factor * max(per_s[max(0, layer - 1) : layer + 1]) * 1e-9,
        energy_mev_u=now.energy_mev_u,
        ion=field.ion,
        port_deg=field.port_deg,
    )


def judge_age(condition: str, now_ns: int, since_ns: int | None, limit_ns: int, detail: str) -> Finding | None:
    """Something that must be heard again and again: `since_ns` is when it was heard last, None for never."""
    if since_ns is None:
        return Finding(condition, float("inf"), limit_ns * 1e-6, detail)
    if not 0 <= now_ns - since_ns <= limit_ns:
        return Finding(condition, (now_ns - since_ns) * 1e-6, limit_ns * 1e-6, detail)
    return None


def judge_late(stream: Stream | None, limit_ns: int, patience_ns: int, now_ns: int) -> Finding | None:
    """Frames do come, but for longer than `patience_ns` none that was younger than `limit_ns`."""
    if stream is not None and stream.late_ns is not None and now_ns - stream.late_ns > patience_ns:
        age_ms = (now_ns - stream.made_ns) * 1e-6
        return Finding("GUARD_FRAMES", age_ms, limit_ns * 1e-6, "frames of electrometer 2 come late")
    return None


def judge_monitor(flags_all: int, flags_any: int, restarts: int, fell: int) -> Finding | None:
    """Electrometer 2 must be fit to count: high voltage on in every frame, not saturated, tripped or restarted."""
    if flags_all & FLAG_HV_OK == 0:
        return Finding("GUARD_MONITOR", 0.0, 1.0, "high voltage outside its window")
    if flags_any & FLAG_SATURATED != 0:
        return Finding("GUARD_MONITOR", 1.0, 0.0, "saturated")
    if flags_any & FLAG_TRIPPED != 0:
        return Finding("GUARD_MONITOR", 1.0, 0.0, "its own backup limit has tripped")
    if restarts > 0:
        return Finding("GUARD_MONITOR", float(restarts), 0.0, "restarted while the field was armed")
    if fell > FALL_COUNTS:
        return Finding("GUARD_MONITOR", float(fell), float(FALL_COUNTS), "its counter fell")
    return None


def judge_visits(visit: int, again: int, last_allowed: int) -> Finding | None:
    """Each visit begins once while the field is armed, in rising order, and none beyond what the controller allowed."""
    if again > 0:
        return Finding("GUARD_VISIT", float(visit), float(last_allowed), "it, or a later visit, had begun before")
    if visit > last_allowed:
        return Finding("GUARD_VISIT", float(visit), float(last_allowed), "beyond the layer")
    return None


def judge_dose(dose: Dose, limits: Limits, floor_counts: float) -> Finding | None:
    """Cumulative counts, beam-on time, rate. `floor_counts`: so much more may come in a turn, however short."""
    if not dose.counts <= limits.counts:
        return Finding("GUARD_COUNTS", dose.counts, limits.counts)
    beam_limit_ns = limits.beam_ns + BEAM_FLOOR_NS + dose.flanks * FLANK_NS
    if not dose.beam_ns <= beam_limit_ns:
        return Finding("GUARD_BEAM_TIME", dose.beam_ns * 1e-9, beam_limit_ns * 1e-9)
    if dose.turn_ns >= RATE_SPAN_NS:
        most = limits.rate_per_ns * dose.turn_ns + floor_counts
        if not dose.turn_counts <= most:
            return Finding("GUARD_RATE", dose.turn_counts / dose.turn_ns * 1e9, most / dose.turn_ns * 1e9)
    return None


def judge_unallowed(beam_ns: int) -> Finding | None:
    """Armed, but no layer may run yet: there is no beam."""
    if beam_ns > BEAM_FLOOR_NS:
        return Finding("GUARD_VISIT", beam_ns * 1e-6, BEAM_FLOOR_NS * 1e-6, "beam before any layer was allowed")
    return None


def judge_sensors(sensors: Sensors, limits: Limits, allowed_ns: int, tolerance_mev_u: float) -> Finding | None:
    """With beam, energy, ion and port of the chain's own sensors are the layer's.

    What was asked before the layer was allowed is of another layer, and is not judged.
    """
    if not sensors.beam_present or sensors.asked_ns < allowed_ns:
        return None
    if not abs(sensors.energy_mev_u - limits.energy_mev_u) <= tolerance_mev_u:
        return Finding("GUARD_ENERGY", sensors.energy_mev_u, limits.energy_mev_u)
    if sensors.ion != limits.ion:
        return Finding("GUARD_ION", float("nan"), float("nan"), f"{sensors.ion}, wanted {limits.ion}")
    off_deg = abs((sensors.port_deg - limits.port_deg + 180.0) % 360.0 - 180.0)
    if not off_deg <= PORT_TOLERANCE_DEG:
        return Finding("GUARD_PORT", sensors.port_deg, limits.port_deg)
    return None


def judge_idle(counted: float, idle_ns: int, per_s: float, floor_counts: float) -> Finding | None:
    """What the retained counter moved while nothing was armed: a pedestal's worth, and never back."""
    most = per_s * max(0, idle_ns) * 1e-9 + floor_counts
    if not -most <= counted <= most:
        return Finding("GUARD_RETAINED", counted, most, "moved while no field was armed")
    return None


def judge_left_open(counted: float, most: float) -> Finding | None:
    """What the counter moved since a guard ended with a field armed: at most what the field could have got."""
    if not 0.0 <= counted <= most:
        return Finding("GUARD_RETAINED", counted, most, "moved since a field was left open")
    return None


def ktp_of(site: Site, temperature_c: float, pressure_hpa: float) -> float:
    """Density correction of an open chamber (IAEA TRS-398)."""
    dosimetry = site.dosimetry
    return (
        (273.15 + temperature_c)
        / (273.15 + dosimetry.reference_temperature_c)
        * (dosimetry.reference_pressure_hpa / pressure_hpa)
    )


def judge_air(site: Site, rules: GuardRules, temperature_c: float, pressure_hpa: float) -> Finding | None:
    """Temperature and pressure of a treatment room, and a kTP that the site allows."""
    for what, got, (low, high) in (
        ("temperature, C", temperature_c, rules.temperature_c),
        ("pressure, hPa", pressure_hpa, rules.pressure_hpa),
    ):
        if not low <= got <= high:
            return Finding("GUARD_CORRECTIONS", got, low if got < low else high, what)
    ktp = ktp_of(site, temperature_c, pressure_hpa)
    low, high = site.dosimetry.ktp_min, site.dosimetry.ktp_max
    if not low <= ktp <= high:
        return Finding("GUARD_CORRECTIONS", ktp, low if ktp < low else high, "kTP")
    return None


def judge_jump(condition: str, got: float, before: float | None, limit: float, detail: str) -> Finding | None:
    """Against the value of the last treatment, where there was one."""
    if before is None:
        return None
    jump = abs(got / before - 1.0) if before > 0 else float("inf")
    if not jump <= limit:
        return Finding(condition, jump, limit, f"{detail}: {got:.6g}, before {before:.6g}")
    return None
