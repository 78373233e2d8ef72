"""The interlock task's judgements and the latch: what is not known is a fault."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.contracts import AcceleratorStatus, ChainStatus, CouchStatus, GantryStatus, GatingStatus, NozzleStatus
from interlocks.conditions import matrix
from interlocks.latch import Latch
from interlocks.slow import Expected, Seen, Violation, angle_difference, judge, judge_frames

NOW_NS = 10_000_000_000
AGE_NS = 400_000_000

COUCH = CouchStatus(NOW_NS, 100.0, 200.0, 300.0, 0.0, 1.0, 359.0, False, False, 8)
NOZZLE = NozzleStatus(NOW_NS, 101, 450.0, 0, 301, False, False, 8)
GOOD: dict[str, Any] = {
    "gantry": GantryStatus(NOW_NS, 359.9, False, False, 8),
    "couch": COUCH,
    "nozzle": NOZZLE,
    "gating": GatingStatus(NOW_NS, 1, True, 0.5, False, 8),
    "accelerator": AcceleratorStatus(NOW_NS, 2, 7, 250.0, "12C", 90.0, 3, 1, True, True, 8),
    "safety_chain": ChainStatus(
        NOW_NS, True, True, 1, 0, False, True, True, True, 100, 0, 250.02, "12C", 90.0, True, False, 8
    ),
}
EXPECTED = Expected(
    gantry_deg=0.0,
    gantry_tolerance_deg=0.3,
    couch=COUCH,
    couch_tolerance_mm=0.5,
    couch_tolerance_deg=0.3,
    nozzle=NOZZLE,
    snout_tolerance_mm=1.0,
    gating_source=1,
    energy_mev_u=250.0,
    energy_tolerance_mev_u=0.2,
    ion="12C",
    port_deg=90.0,
    request_id=7,
    hold_max_s=60.0,
    holds_max=10,
    chain=True,
)
MEASURED = [
    ("gantry", "angle_deg", "GANTRY_MOVED", 0.3),
    *(("couch", f"{axis}_mm", "COUCH_MOVED", 0.5) for axis in ("vertical", "longitudinal", "lateral")),
    *(("couch", f"{axis}_deg", "COUCH_MOVED", 0.3) for axis in ("rotation", "pitch", "roll")),
    ("nozzle", "snout_mm", "NOZZLE_WRONG", 1.0),
    ("safety_chain", "port_sensor_deg", "PORT_SENSOR", 0.5),
    ("safety_chain", "energy_sensor_mev_u", "ENERGY_SENSOR", 0.2),
]
WANTED = {
    "angle_deg": 0.0,
    "port_sensor_deg": 90.0,
    "energy_sensor_mev_u": 250.0,
    **{f.name: getattr(COUCH, f.name) for f in fields(COUCH) if f.name not in ("t_ns", "moving", "fault")},
    "snout_mm": 450.0,
}
WRONG: list[tuple[str, str, Any, str]] = [
    ("gantry", "moving", True, "GANTRY_MOVED"),
    ("gantry", "fault", True, "GANTRY_MOVED"),
    ("couch", "moving", True, "COUCH_MOVED"),
    ("couch", "fault", True, "COUCH_MOVED"),
    ("nozzle", "snout_code", 0, "NOZZLE_WRONG"),
    ("nozzle", "range_shifter_code", 201, "NOZZLE_WRONG"),
    ("nozzle", "ripple_filter_code", 0, "NOZZLE_WRONG"),
    ("nozzle", "moving", True, "NOZZLE_WRONG"),
    ("nozzle", "fault", True, "NOZZLE_WRONG"),
    ("gating", "fault", True, "GATING_FAULT"),
    ("gating", "source", 0, "GATING_FAULT"),
    ("accelerator", "state", 3, "ACCELERATOR_STATE"),
    ("accelerator", "request_id", 8, "ACCELERATOR_STATE"),
    ("safety_chain", "emergency_stop", True, "CHAIN_INPUT"),
    ("safety_chain", "door_closed", False, "CHAIN_INPUT"),
    ("safety_chain", "room_searched", False, "CHAIN_INPUT"),
    ("safety_chain", "room_allocated", False, "CHAIN_INPUT"),
    ("safety_chain", "ion_sensor", "1H", "ION_SENSOR"),
    ("safety_chain", "ion_sensor", "", "ION_SENSOR"),
]


def seen(**changes: Any) -> Mapping[str, Seen]:
    return {name: Seen(status, NOW_NS, AGE_NS, NOW_NS) for name, status in {**GOOD, **changes}.items()}


def ids(statuses: Mapping[str, Seen], expected: Expected = EXPECTED, **holds: Any) -> set[str]:
    return {found.id for found in judge(statuses, expected, NOW_NS, **holds)}


def test_a_room_as_it_should_be_has_no_violation() -> None:
    assert judge(seen(), EXPECTED, NOW_NS, hold_s=60.0, holds=10) == []


def test_every_slow_judgement_is_in_the_matrix_and_judged_by_the_task() -> None:
    judged = {name for *_, name in WRONG} | {name for _, _, name, _ in MEASURED} | {"STATUS_STALE", "HOLD_TOO_LONG"}
    judged |= {"STATUS_FROZEN", "REALTIME_SILENT"}
    assert all(matrix()[name].where == "task" for name in judged)


@pytest.mark.parametrize(("age_ns", "silent"), [(-12_000, False), (0, False), (450, False), (451, True)])
def test_frames_that_nobody_takes_in_any_more_are_a_silent_real_time_path(age_ns: int, silent: bool) -> None:
    found = judge_frames(NOW_NS - age_ns, NOW_NS, 450)
    assert found == ([Violation("REALTIME_SILENT", age_ns * 1e-6, 450e-6, "")] if silent else [])


@pytest.mark.parametrize(("device", "name", "value", "condition"), WRONG)
def test_a_wrong_state_is_its_condition(device: str, name: str, value: Any, condition: str) -> None:
    assert ids(seen(**{device: replace(GOOD[device], **{name: value})})) == {condition}


@pytest.mark.parametrize(("device", "name", "condition", "tolerance"), MEASURED)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_measured_value_trips_outside_its_tolerance_only(
    device: str, name: str, condition: str, tolerance: float, sign: int
) -> None:
    def at(share: float) -> set[str]:
        value = WANTED[name] + sign * share * tolerance
        return ids(seen(**{device: replace(GOOD[device], **{name: value})}))

    assert at(0.99) == set()
    assert at(1.01) == {condition}


@pytest.mark.parametrize(("device", "name", "condition", "tolerance"), MEASURED)
@given(value=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_no_number_is_a_violation(device: str, name: str, condition: str, tolerance: float, value: float) -> None:
    assert condition in ids(seen(**{device: replace(GOOD[device], **{name: value})}))


@given(st.sampled_from(MEASURED), st.floats(allow_nan=True, allow_infinity=True))
def test_any_value_is_either_within_tolerance_or_a_violation(
    measured: tuple[str, str, str, float], value: float
) -> None:
    device, name, condition, tolerance = measured
    between_spills = name == "energy_sensor_mev_u" and value == 0.0 and not GOOD["safety_chain"].beam_present
    wanted = WANTED[name]
    off = angle_difference(value, wanted) if name.endswith("_deg") else abs(value - wanted)
    good = off <= tolerance or between_spills
    assert (condition in ids(seen(**{device: replace(GOOD[device], **{name: value})}))) == (not good)


def test_exactly_at_its_tolerance_a_value_is_inside() -> None:
    expected = replace(EXPECTED, gantry_tolerance_deg=0.5, couch_tolerance_deg=0.5, energy_tolerance_mev_u=0.25)
    at = seen(
        gantry=replace(GOOD["gantry"], angle_deg=0.5),
        couch=replace(COUCH, vertical_mm=100.5, pitch_deg=1.5),
        nozzle=replace(NOZZLE, snout_mm=451.0),
        safety_chain=replace(GOOD["safety_chain"], port_sensor_deg=90.5, energy_sensor_mev_u=250.25),
    )
    assert ids(at, expected) == set()


def test_a_distance_is_no_angle_and_does_not_come_round() -> None:
    assert ids(seen(couch=replace(COUCH, vertical_mm=COUCH.vertical_mm + 360.0))) == {"COUCH_MOVED"}
    assert ids(seen(couch=replace(COUCH, rotation_deg=359.9))) == set()


@pytest.mark.parametrize("device", ["gantry", "couch", "nozzle"])
@pytest.mark.parametrize("why", ["fault", "moving"])
def test_a_fault_is_not_called_a_movement(device: str, why: str) -> None:
    found = judge(seen(**{device: replace(GOOD[device], **{why: True})}), EXPECTED, NOW_NS)
    assert [violation.detail for violation in found] == [why]


def test_a_stale_status_says_how_old_it_is_and_may_be_in_ms() -> None:
    (found,) = judge(
        {**seen(), "couch": Seen(COUCH, NOW_NS - 450_000_000, AGE_NS, NOW_NS - 450_000_000)}, EXPECTED, NOW_NS
    )
    assert (found.value, found.limit) == (pytest.approx(450.0), pytest.approx(400.0))


def test_the_state_of_a_faulty_accelerator_is_said() -> None:
    (found,) = judge(seen(accelerator=replace(GOOD["accelerator"], state=3)), EXPECTED, NOW_NS)
    assert found.value == 3.0


def test_a_wrong_energy_is_a_fault_though_no_beam_was_seen_beside_it() -> None:
    dark = replace(GOOD["safety_chain"], energy_sensor_mev_u=260.0, beam_present=False)
    assert ids(seen(safety_chain=dark)) == {"ENERGY_SENSOR"}


def test_where_no_ion_is_expected_none_is_judged() -> None:
    assert ids(seen(safety_chain=replace(GOOD["safety_chain"], ion_sensor="1H")), replace(EXPECTED, ion=None)) == set()


def test_the_chains_inputs_alone_need_the_chains_word() -> None:
    assert [found.id for found in judge({}, Expected(chain=True), NOW_NS)] == ["STATUS_STALE"]


def test_holds_are_judged_only_in_a_field_with_limits_and_short_limits_are_limits() -> None:
    assert judge(seen(), Expected(), NOW_NS, hold_s=5.0, holds=3) == []
    assert ids(seen(), Expected(hold_max_s=0.5), hold_s=0.6) == {"HOLD_TOO_LONG"}
    assert ids(seen(), Expected(holds_max=1), holds=2) == {"HOLD_TOO_LONG"}


def test_sensors_are_not_judged_between_spills() -> None:
    dark = replace(GOOD["safety_chain"], energy_sensor_mev_u=0.0, ion_sensor="", beam_present=False)
    assert ids(seen(safety_chain=dark)) == set()


def test_a_sensor_that_reads_nothing_while_there_is_beam_is_a_fault() -> None:
    blind = replace(GOOD["safety_chain"], energy_sensor_mev_u=0.0, beam_present=True)
    assert "ENERGY_SENSOR" in ids(seen(safety_chain=blind))


@pytest.mark.parametrize("device", GOOD)
@given(age_ns=st.integers(-(10**12), 10**12))
def test_a_status_older_than_allowed_or_from_the_future_is_stale(device: str, age_ns: int) -> None:
    statuses = {**seen(), device: Seen(GOOD[device], NOW_NS - age_ns, AGE_NS, NOW_NS - age_ns)}
    stale = [found for found in judge(statuses, EXPECTED, NOW_NS) if found.id == "STATUS_STALE"]
    assert [found.detail for found in stale] == ([] if 0 <= age_ns <= AGE_NS else [device])


@pytest.mark.parametrize("device", GOOD)
@given(stood_ns=st.integers(-(10**12), 10**12))
def test_a_fresh_answer_with_an_old_heartbeat_is_an_old_answer(device: str, stood_ns: int) -> None:
    statuses = {**seen(), device: Seen(GOOD[device], NOW_NS, AGE_NS, NOW_NS - stood_ns)}
    found = judge(statuses, EXPECTED, NOW_NS)
    wanted = [] if 0 <= stood_ns <= AGE_NS else [("STATUS_FROZEN", device)]
    assert [(v.id, v.detail) for v in found] == wanted


@pytest.mark.parametrize("device", GOOD)
def test_exactly_as_old_as_allowed_a_status_is_not_stale(device: str) -> None:
    for age_ns, stale in ((0, []), (AGE_NS, []), (AGE_NS + 1, [device]), (-1, [device])):
        statuses = {**seen(), device: Seen(GOOD[device], NOW_NS - age_ns, AGE_NS, NOW_NS)}
        assert [v.detail for v in judge(statuses, EXPECTED, NOW_NS) if v.id == "STATUS_STALE"] == stale
        statuses = {**seen(), device: Seen(GOOD[device], NOW_NS, AGE_NS, NOW_NS - age_ns)}
        assert [v.detail for v in judge(statuses, EXPECTED, NOW_NS) if v.id == "STATUS_FROZEN"] == stale


@pytest.mark.parametrize("device", GOOD)
def test_a_device_without_any_status_is_a_violation_where_something_is_expected_of_it(device: str) -> None:
    statuses = {name: status for name, status in seen().items() if name != device}
    found = judge(statuses, EXPECTED, NOW_NS)
    assert [(v.id, device in v.detail) for v in found] == [("STATUS_STALE", True)]
    assert judge(statuses, Expected(), NOW_NS) == []


@pytest.mark.parametrize(("hold_s", "holds"), [(60.1, 0), (0.0, 11), (math.nan, 0)])
def test_holds_have_limits(hold_s: float, holds: int) -> None:
    assert ids(seen(), hold_s=hold_s, holds=holds) == {"HOLD_TOO_LONG"}


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_angles_differ_by_at_most_half_a_turn_and_do_not_care_about_turns(a: float, b: float) -> None:
    difference = angle_difference(a, b)
    assert 0 <= difference <= 180
    assert angle_difference(b, a) == pytest.approx(difference, abs=1e-6)
    assert angle_difference(a + 360, b) == pytest.approx(difference, abs=1e-6)


def test_the_first_trip_is_first_out_and_later_ones_keep_their_order() -> None:
    latch = Latch()
    assert not latch.tripped
    assert latch.first_out is None
    first = latch.trip("SPOT_TIME", 100, value=12.0, limit=10.0, detail="visit 3")
    second = latch.trip("CHAIN_OPENED", 200)
    assert first is not None
    assert second is not None
    assert first.first_out
    assert not second.first_out
    assert latch.first_out == first
    assert latch.history == (first, second)


def test_the_same_trip_latches_once_but_another_device_counts() -> None:
    latch = Latch()
    assert latch.trip("STATUS_STALE", 1, detail="gantry") is not None
    assert latch.trip("STATUS_STALE", 2, detail="gantry") is None
    assert latch.trip("STATUS_STALE", 3, detail="couch") is not None
    assert latch.trip("GANTRY_MOVED", 4, detail="gantry") is not None
    assert len(latch.history) == 3


def test_only_a_named_operator_with_a_reason_resets() -> None:
    latch = Latch()
    latch.trip("DISK", 1)
    for operator, reason in (("", "repaired"), ("  ", "repaired"), ("anna", ""), ("anna", "\t")):
        with pytest.raises(ValueError, match="named operator"):
            latch.reset(operator, reason)
        assert latch.tripped
    cleared = latch.reset("anna", "disk replaced")
    assert [trip.id for trip in cleared] == ["DISK"]
    assert not latch.tripped
    again = latch.trip("DISK", 2)
    assert again is not None
    assert again.first_out
    assert [trip.t_ns for trip in latch.history] == [1, 2]


def test_a_condition_that_is_not_in_the_matrix_is_no_condition() -> None:
    with pytest.raises(KeyError):
        Latch().trip("NO_SUCH_THING", 1)


@pytest.mark.parametrize("name", sorted(matrix()))
def test_the_operator_reads_cause_value_limit_and_what_to_do(name: str) -> None:
    trip = Latch().trip(name, 1, value=12.5, limit=10.0, detail="somewhere")
    assert trip is not None
    text = trip.message()
    unit = matrix()[name].unit
    for part in (
        name,
        matrix()[name].cause,
        "somewhere",
        "12.5",
        f"limit 10{unit and ' '}{unit}.",
        matrix()[name].hint,
    ):
        assert part in text


@given(st.lists(st.sampled_from([*sorted(matrix())[:6], "reset"]), max_size=40))
def test_a_latch_is_open_exactly_when_something_tripped_since_the_last_reset(events: list[str]) -> None:
    latch = Latch()
    since: list[str] = []
    for t_ns, event in enumerate(events):
        if event == "reset":
            latch.reset("anna", "test")
            since = []
        else:
            latch.trip(event, t_ns)
            since.append(event)
        assert latch.tripped == bool(since)
        assert (latch.first_out.id if latch.first_out else None) == (since[0] if since else None)
