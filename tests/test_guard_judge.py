"""The guard's judgements: each limit is met on its edge and broken just beyond it, and what is no number is wrong."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.flags import FLAG_BEAM, FLAG_HV_OK, FLAG_SATURATED, FLAG_TRIPPED
from interlocks import guard_digest as d
from interlocks import guard_judge as judge
from interlocks.conditions import matrix
from interlocks.guard_judge import Dose, Finding, Limits, Sensors
from interlocks.guard_numbers import ExpectedField, ExpectedLayer, counts_per_particle, recombination
from sites.loader import load_site

SITE = load_site("carbon-fixed")
assert SITE.guard is not None
RULES = SITE.guard
LIMITS = Limits(1, 10, 1000.0, 1e9, 1e-3, 200.0, "12C", 90.0)
DOSE = Dose(0.0, 0, 0, 0.0, judge.RATE_SPAN_NS)
SENSORS = Sensors(100, True, 200.0, "12C", 90.0)
NAN = float("nan")
ABOVE = 1.0 + 1e-12


def named(found: Finding | None) -> str | None:
    if found is not None:
        assert matrix()[found.id].where == "guard"
    return None if found is None else found.id


@pytest.mark.parametrize(
    ("counts", "wrong"), [(1000.0, None), (1000.0 * ABOVE, "GUARD_COUNTS"), (NAN, "GUARD_COUNTS"), (-5.0, None)]
)
def test_counts(counts: float, wrong: str | None) -> None:
    assert named(judge.judge_dose(dataclasses.replace(DOSE, counts=counts), LIMITS, 60.0)) == wrong


@pytest.mark.parametrize("flanks", [0, 1, 7])
def test_beam_time_and_its_flanks(flanks: int) -> None:
    most = 1_000_000_000 + judge.BEAM_FLOOR_NS + flanks * judge.FLANK_NS
    at = dataclasses.replace(DOSE, beam_ns=most, flanks=flanks)
    assert judge.judge_dose(at, LIMITS, 60.0) is None
    assert named(judge.judge_dose(dataclasses.replace(at, beam_ns=most + 1), LIMITS, 60.0)) == "GUARD_BEAM_TIME"


def test_rate_is_judged_from_a_millisecond_on() -> None:
    most = 1e-3 * judge.RATE_SPAN_NS + 60.0
    at = dataclasses.replace(DOSE, turn_counts=most)
    assert judge.judge_dose(at, LIMITS, 60.0) is None
    assert named(judge.judge_dose(dataclasses.replace(at, turn_counts=most + 1), LIMITS, 60.0)) == "GUARD_RATE"
    short = dataclasses.replace(at, turn_counts=most + 1, turn_ns=judge.RATE_SPAN_NS - 1)
    assert judge.judge_dose(short, LIMITS, 60.0) is None
    found = judge.judge_dose(dataclasses.replace(at, turn_counts=2 * most), LIMITS, 60.0)
    assert found is not None
    assert found.value == pytest.approx(2 * found.limit)
    assert found.limit == pytest.approx(most / judge.RATE_SPAN_NS * 1e9)


@pytest.mark.parametrize(
    ("visit", "again", "wrong"),
    [(10, 0, None), (1, 0, None), (0, 0, None), (11, 0, "GUARD_VISIT"), (5, 1, "GUARD_VISIT")],
)
def test_visits(visit: int, again: int, wrong: str | None) -> None:
    assert named(judge.judge_visits(visit, again, 10)) == wrong


def test_beam_before_a_layer_was_named() -> None:
    assert judge.judge_unallowed(judge.BEAM_FLOOR_NS) is None
    assert named(judge.judge_unallowed(judge.BEAM_FLOOR_NS + 1)) == "GUARD_VISIT"


def test_age_has_an_edge() -> None:
    assert judge.judge_age("GUARD_FRAMES", 200, 100, 100, "") is None
    assert named(judge.judge_age("GUARD_FRAMES", 201, 100, 100, "")) == "GUARD_FRAMES"
    assert judge.judge_age("GUARD_FRAMES", 100, 100, 100, "") is None
    assert named(judge.judge_age("GUARD_FRAMES", 99, 100, 100, "")) == "GUARD_FRAMES"  # from the future
    assert named(judge.judge_age("GUARD_FRAMES", 100, None, 100, "")) == "GUARD_FRAMES"


@pytest.mark.parametrize(
    ("flags_all", "flags_any", "restarts", "fell", "words"),
    [
        (FLAG_HV_OK, FLAG_HV_OK | FLAG_BEAM, 0, judge.FALL_COUNTS, None),
        (d.ALL_FLAGS, 0, 0, 0, None),
        (FLAG_BEAM, FLAG_HV_OK, 0, 0, "high voltage"),
        (FLAG_HV_OK, FLAG_SATURATED, 0, 0, "saturated"),
        (FLAG_HV_OK, FLAG_TRIPPED, 0, 0, "tripped"),
        (FLAG_HV_OK, FLAG_HV_OK, 1, 0, "restarted"),
        (FLAG_HV_OK, FLAG_HV_OK, 0, judge.FALL_COUNTS + 1, "fell"),
    ],
)
def test_the_monitor(flags_all: int, flags_any: int, restarts: int, fell: int, words: str | None) -> None:
    found = judge.judge_monitor(flags_all, flags_any, restarts, fell)
    assert named(found) == (None if words is None else "GUARD_MONITOR")
    assert found is None or (words is not None and words in found.detail)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, None),
        ({"energy_mev_u": 200.5}, None),
        ({"energy_mev_u": 200.51}, "GUARD_ENERGY"),
        ({"energy_mev_u": 199.49}, "GUARD_ENERGY"),
        ({"energy_mev_u": 0.0}, "GUARD_ENERGY"),
        ({"energy_mev_u": NAN}, "GUARD_ENERGY"),
        ({"ion": "1H"}, "GUARD_ION"),
        ({"port_deg": 90.5}, None),
        ({"port_deg": 89.4}, "GUARD_PORT"),
        ({"port_deg": 450.0}, None),
        ({"port_deg": NAN}, "GUARD_PORT"),
        ({"energy_mev_u": 0.0, "beam_present": False}, None),
        ({"energy_mev_u": 0.0, "asked_ns": 49}, None),
        ({"energy_mev_u": 0.0, "asked_ns": 50}, "GUARD_ENERGY"),
    ],
)
def test_the_beam_lines_own_sensors(change: dict[str, object], wrong: str | None) -> None:
    sensors = dataclasses.replace(SENSORS, **change)  # type: ignore[arg-type]
    assert named(judge.judge_sensors(sensors, LIMITS, 50, 0.5)) == wrong


@given(st.integers(0, 10**12), st.floats(0, 1e4), st.floats(0, 1e4))
def test_idle_counts_have_two_edges(idle_ns: int, per_s: float, floor: float) -> None:
    most = per_s * idle_ns * 1e-9 + floor
    assert judge.judge_idle(most, idle_ns, per_s, floor) is None
    assert judge.judge_idle(-most, idle_ns, per_s, floor) is None
    assert named(judge.judge_idle(most + 1.0, idle_ns, per_s, floor)) == "GUARD_RETAINED"
    assert named(judge.judge_idle(-most - 1.0, idle_ns, per_s, floor)) == "GUARD_RETAINED"


def test_idle_time_that_runs_backwards_is_none() -> None:
    assert judge.judge_idle(5.0, -(10**15), 1000.0, 5.0) is None
    assert named(judge.judge_idle(5.1, -(10**15), 1000.0, 5.0)) == "GUARD_RETAINED"
    assert named(judge.judge_idle(NAN, 10**9, 1000.0, 5.0)) == "GUARD_RETAINED"


@pytest.mark.parametrize(
    ("counted", "wrong"),
    [(0.0, None), (100.0, None), (-1.0, "GUARD_RETAINED"), (100.1, "GUARD_RETAINED"), (NAN, "GUARD_RETAINED")],
)
def test_what_a_field_left_open_can_have_got(counted: float, wrong: str | None) -> None:
    assert named(judge.judge_left_open(counted, 100.0)) == wrong


@pytest.mark.parametrize(
    ("temperature_c", "pressure_hpa", "words"),
    [
        (22.0, 1005.0, None),
        (RULES.temperature_c[0], 1000.0, None),
        (RULES.temperature_c[1], 1000.0, None),
        (RULES.temperature_c[0] - 0.1, 1000.0, "temperature"),
        (RULES.temperature_c[1] + 0.1, 1000.0, "temperature"),
        (NAN, 1000.0, "temperature"),
        (20.0, RULES.pressure_hpa[0] - 0.1, "pressure"),
        (20.0, RULES.pressure_hpa[1] + 0.1, "pressure"),
        (20.0, NAN, "pressure"),
        (20.0, RULES.pressure_hpa[1], None),
        (35.0, 860.0, "kTP"),
        (20.0, 1013.25 / 1.1499, None),
        (20.0, 1013.25 / 1.1501, "kTP"),
    ],
)
def test_the_air_of_the_room(temperature_c: float, pressure_hpa: float, words: str | None) -> None:
    found = judge.judge_air(SITE, RULES, temperature_c, pressure_hpa)
    assert named(found) == (None if words is None else "GUARD_CORRECTIONS")
    assert found is None or (words is not None and found.detail.startswith(words))


def test_a_ktp_at_its_bound_is_allowed() -> None:
    ktp = judge.ktp_of(SITE, 20.0, 1000.0)
    for bounds in ((ktp, 2.0), (0.5, ktp)):
        changes = dict(zip(("ktp_min", "ktp_max"), bounds, strict=True))
        site = SITE.model_copy(update={"dosimetry": SITE.dosimetry.model_copy(update=changes)})
        assert judge.judge_air(site, RULES, 20.0, 1000.0) is None


def test_the_guards_own_allowances_are_what_was_decided() -> None:
    assert (judge.FLANK_NS, judge.BEAM_FLOOR_NS) == (500_000, 20_000_000)


def test_a_jump_at_its_limit_is_allowed() -> None:
    assert judge.judge_jump("GUARD_CORRECTIONS", 1.5, 1.0, 0.5, "kTP") is None


def test_ktp_is_that_of_trs_398() -> None:
    assert judge.ktp_of(SITE, 20.0, 1013.25) == pytest.approx(1.0)
    assert judge.ktp_of(SITE, 22.0, 1005.0) == pytest.approx(1.0151, abs=5e-5)


@pytest.mark.parametrize(
    ("got", "before", "wrong"),
    [
        (1.0, None, None),
        (1.05, 1.0, None),
        (0.95, 1.0, None),
        (1.0501, 1.0, "GUARD_CORRECTIONS"),
        (0.9499, 1.0, "GUARD_CORRECTIONS"),
        (1.0, 0.0, "GUARD_CORRECTIONS"),
        (NAN, 1.0, "GUARD_CORRECTIONS"),
    ],
)
def test_jumps(got: float, before: float | None, wrong: str | None) -> None:
    assert named(judge.judge_jump("GUARD_CORRECTIONS", got, before, 0.0500001, "kTP")) == wrong


def field_of(*layers: tuple[float, int, float]) -> ExpectedField:
    """Layers of (energy, visits, particles)."""
    first = 1
    made = []
    for energy, visits, particles in layers:
        counts = particles * counts_per_particle(SITE, "12C", energy)
        made.append(ExpectedLayer(energy, first, visits, particles, counts))
        first += visits
    return ExpectedField("12C", 90.0, tuple(made))


def test_limits_add_up_over_the_layers() -> None:
    field = field_of((250.0, 10, 1e7), (240.0, 5, 2e7), (230.0, 1, 4e7))
    rates = (2e6, 4e6, 8e6)
    ktp = 1.01
    for layer in range(3):
        limits = judge.limits_of(SITE, RULES, field, layer, rates, ktp)
        assert (limits.first_visit, limits.last_visit) == [(1, 10), (11, 15), (16, 16)][layer]
        assert limits.energy_mev_u == field.layers[layer].energy_mev_u
        ks = [recombination(SITE, rate) for rate in rates]
        counts = sum(field.layers[k].counts_2 / ktp / ks[k] for k in range(layer + 1))
        per_s = [rate * counts_per_particle(SITE, "12C", one.energy_mev_u) / ktp / k for rate, one, k in
                 zip(rates, field.layers, ks, strict=True)]  # fmt: skip
        assert limits.counts == pytest.approx(1.01 * counts + 200.0 + 250e-6 * per_s[layer], rel=1e-9)
        beam_s = sum((1e7 / 2e6, 2e7 / 4e6, 4e7 / 8e6)[: layer + 1])
        assert limits.beam_ns == pytest.approx(1.2e9 * beam_s)
        assert limits.rate_per_ns == pytest.approx(2.0 * per_s[layer] * 1e-9)
    falling = judge.limits_of(SITE, RULES, field, 1, (8e6, 4e6, 2e6), ktp)
    assert falling.rate_per_ns == pytest.approx(
        judge.limits_of(SITE, RULES, field, 0, (8e6, 4e6, 2e6), ktp).rate_per_ns
    )


FRAMES = st.lists(
    st.tuples(
        st.integers(1, 3),  # frames until this one: 1, or some were lost
        st.integers(0, 3),  # visits on
        st.booleans(),  # beam
        st.integers(0, 500),  # counted
    ),
    min_size=1,
    max_size=60,
)


@given(FRAMES)
def test_the_digest_loses_neither_charge_nor_time(frames: list[tuple[int, int, bool, int]]) -> None:
    digest = [0] * d.WORDS
    d.new_digest(digest)
    t_ns, visit, counts = 1_000_000, 0, 5000
    d.take_frame(digest, 7, t_ns, visit, FLAG_HV_OK, counts)
    beam_ns = quiet_ns = quiet = 0
    flanks = 0
    before = False
    for gap, on, beam, more in frames:
        t_ns += gap * 100_000
        visit += on
        counts += more
        d.take_frame(digest, 7, t_ns, visit, FLAG_HV_OK | (FLAG_BEAM if beam else 0), counts)
        beam_ns += gap * 100_000 * beam
        if not beam and not before:
            quiet_ns += gap * 100_000
            quiet += more
        flanks += before and not beam
        before = beam
        d.take_frame(digest, 7, t_ns, 1, 0, 10**9)  # the same again, or an older one, is nothing
    assert digest[d.COUNTS] == counts
    assert digest[d.BEAM_NS] == beam_ns
    assert (digest[d.QUIET_NS], digest[d.QUIET_COUNTS], digest[d.FLANKS]) == (quiet_ns, quiet, flanks)
    assert (digest[d.VISIT], digest[d.AGAIN], digest[d.RESTARTS], digest[d.FELL]) == (visit, 0, 0, 0)
    assert digest[d.FRAMES] == len(frames) + 1


def test_the_digest_sees_what_runs_backwards() -> None:
    digest = [0] * d.WORDS
    d.new_digest(digest)
    d.take_frame(digest, 7, 100, 5, FLAG_HV_OK, 1000)
    d.take_frame(digest, 7, 200, 0, FLAG_HV_OK, 980)  # no visit is no visit
    assert (digest[d.AGAIN], digest[d.FELL]) == (0, 20)
    d.take_frame(digest, 7, 300, 4, 0, 990)
    assert digest[d.AGAIN] == 1
    assert digest[d.FLAGS_ALL] & FLAG_HV_OK == 0
    assert digest[d.FLAGS_ANY] & FLAG_HV_OK != 0
    d.begin_turn(digest)
    assert (digest[d.FLAGS_ALL], digest[d.FLAGS_ANY]) == (d.ALL_FLAGS, 0)
    d.take_frame(digest, 8, 10, 4, FLAG_HV_OK, 0)  # another power-up: its time and counter are its own
    assert (digest[d.RESTARTS], digest[d.T_NS], digest[d.COUNTS], digest[d.FELL]) == (1, 10, 0, 20)
    d.begin_field(digest)
    assert (digest[d.VISIT], digest[d.AGAIN], digest[d.FELL], digest[d.BEAM_NS], digest[d.FLANKS]) == (0, 0, 0, 0, 0)


def test_a_visit_begins_once_in_a_field_whatever_the_visit_line_shows_between() -> None:
    def begun_again(*visits: int) -> int:
        digest = [0] * d.WORDS
        d.new_digest(digest)
        for t_ns, visit in enumerate(visits, start=1):
            if visit < 0:
                d.begin_field(digest)
            else:
                d.take_frame(digest, 7, t_ns, visit, FLAG_HV_OK, 1000)
        return digest[d.AGAIN]

    assert begun_again(1, 1, 0, 2, 2, 0, 0, 5, 5) == 0
    assert begun_again(1, 0, 1) == 1
    assert begun_again(1, 1, 0, 1, 1, 0, 1, 1) == 2
    assert begun_again(3, 0, 2) == 1
    assert begun_again(3, 2) == 1
    assert begun_again(3, 0, -1, 3, 4) == 0  # another arming gives the rest of a visit
    assert begun_again(3, -1, 3, 0, 3) == 1  # what shows at the arming has begun in it


def test_a_new_digest_and_a_new_field_forget_what_they_should() -> None:
    assert (d.WORDS, d.ALL_FLAGS) == (16, 0xFFFFFFFF)
    digest = [7] * d.WORDS
    d.begin_field(digest)
    fields_own = {d.SHOWN, d.VISIT, d.AGAIN, d.FELL, d.BEAM_NS, d.FLANKS}
    assert digest == [0 if word in fields_own else 7 for word in range(16)]
    d.new_digest(digest)
    assert digest == [0xFFFFFFFF if word == d.FLAGS_ALL else 0 for word in range(16)]
    d.take_frame(digest, 0, 1000, 0, 0, 500)  # the first one says nothing of the time before it
    assert (digest[d.QUIET_NS], digest[d.QUIET_COUNTS], digest[d.FRAMES]) == (0, 0, 1)


def test_a_finding_without_a_number_is_nan_not_zero() -> None:
    found = judge.judge_sensors(dataclasses.replace(SENSORS, ion="none"), LIMITS, 50, 0.5)
    assert found is not None
    assert math.isnan(found.value)
