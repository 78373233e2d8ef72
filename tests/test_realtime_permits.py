"""What leaves the real-time path: permits for fresh frames while nothing is wrong, one drop for each trip."""

from __future__ import annotations

import math

import pytest

from controller.dose.integrator import ACTION_DROP, ACTION_NONE, ACTION_PERMIT, handle_silence
from drivers.flags import FLAG_BEAM, FLAG_HV_OK, FLAG_TRIPPED
from drivers.wires.frames import (
    SCAN_BEAM_ON_US,
)
from interlocks import numbers
from tests.frame_script import SETTLE_TICKS, Script
from tests.plan_models import spots
from tests.plant_rig import CARBON, LATENCY_NS, TOKEN, monitor_path, programs_of

PROGRAM = programs_of(CARBON, spots([(2.0 * k, 0.0, 2.0) for k in range(25)]))[0]
TICKS = 63
"""Ticks of a visit of PROGRAM at its rate."""


@pytest.fixture
def script() -> Script:
    """All streams alive, permits on, no visit yet."""
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(SETTLE_TICKS)
    script.path.permit(TOKEN)
    return script


def test_the_first_condition_stays_with_its_value_limit_and_time(script: Script) -> None:
    script.begin(1)
    script.scan[SCAN_BEAM_ON_US] = int(script.path.monitor.plan[1]["time_limit_us"]) + 7
    script.tick(2)
    first = script.path.trip()
    script.flags[1] &= ~FLAG_HV_OK
    script.tick(2)
    script.path.drop()
    script.tick(5)
    assert script.path.trip() == first
    assert first is not None
    assert first.visit == 1
    assert first.value - first.limit == pytest.approx(7e-3)
    assert int(script.path.monitor.state["trips"]) == 1


def test_a_trip_says_when_by_the_devices_clock_and_by_ours(script: Script) -> None:
    script.flags[1] &= ~FLAG_HV_OK
    trip = script.tick()
    assert trip is not None
    assert trip.t_ns == script.t_ns
    assert int(script.path.monitor.state["trip_local_ns"]) == script.t_ns + LATENCY_NS


@pytest.mark.parametrize("stream", [1, 2, 3])
def test_a_stream_that_never_spoke_is_silent_from_the_first_permit_on(stream: int) -> None:
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(10, without=(stream,))
    assert script.path.trip() is None
    script.path.permit(TOKEN)
    trip = script.tick(2, without=(stream,))
    assert trip is not None
    assert trip.number == numbers.STREAM_SILENT_1 + stream - 1


def test_a_reset_clears_and_what_is_still_wrong_latches_again(script: Script) -> None:
    script.flags[1] &= ~FLAG_HV_OK
    script.tick(2)
    script.path.reset()
    trip = script.tick()
    assert trip is not None
    assert trip.number == numbers.HIGH_VOLTAGE_1
    assert int(script.path.monitor.state["trips"]) == 2
    script.flags[1] |= FLAG_HV_OK
    script.path.reset()
    assert script.tick(20) is None


def test_permits_leave_for_every_frame_of_electrometer_1_and_for_nothing_else(script: Script) -> None:
    script.actions.clear()
    script.tick(40)
    assert script.actions.count(ACTION_PERMIT) == 40
    assert len(script.actions) == 100
    script.actions.clear()
    script.tick(40, without=(1,))
    assert set(script.actions) == {ACTION_NONE}


def test_no_permit_while_permits_are_off(script: Script) -> None:
    script.path.withhold()
    script.actions.clear()
    script.tick(40)
    assert set(script.actions) == {ACTION_NONE}


@pytest.mark.parametrize("number", [0, 1])
def test_no_permit_without_both_leases(script: Script, number: int) -> None:
    end_ns = script.t_ns + 5 * 100_000 + LATENCY_NS
    script.path.renew(number, end_ns)
    script.actions.clear()
    assert script.tick(40) is None
    assert script.actions.count(ACTION_PERMIT) == 5


def test_a_late_frame_is_integrated_but_never_permitted(script: Script) -> None:
    rate_1, rate_2 = script.rates()
    script.begin(1)
    age_ns = int(script.path.monitor.limits["frame_age_ns"])
    script.tick(10, add_1=rate_1, add_2=rate_2)
    # the smallest delay seen lately may creep up by 10 ns a frame: clocks of devices drift
    script.late_ns = age_ns - 1000
    script.actions.clear()
    script.tick(5, add_1=rate_1, add_2=rate_2)
    assert script.actions.count(ACTION_PERMIT) == 5
    script.late_ns = age_ns + 1000
    script.actions.clear()
    assert script.tick(5, add_1=rate_1, add_2=rate_2) is None
    assert script.actions.count(ACTION_PERMIT) == 0
    assert int(script.path.monitor.streams[1]["late"]) == 5
    assert int(script.path.monitor.state["counts_1"]) == script.counts[1]


def test_a_repeated_frame_is_neither_integrated_nor_permitted(script: Script) -> None:
    script.sequence[1] -= 1
    script.actions.clear()
    assert script.tick(add_1=50) is None
    assert script.actions.count(ACTION_PERMIT) == 0
    assert int(script.path.monitor.streams[1]["repeated"]) == 1
    assert int(script.path.monitor.state["counts_1"]) == script.counts[1] - 50


def test_a_trip_drops_exactly_once_and_permits_end(script: Script) -> None:
    script.actions.clear()
    script.flags[3] |= FLAG_TRIPPED
    script.tick(2)
    script.tick(50)
    assert script.actions.count(ACTION_DROP) == 1
    after = script.actions[script.actions.index(ACTION_DROP) + 1 :]
    assert set(after) == {ACTION_NONE}
    assert int(script.path.monitor.state["drops"]) == 1


def test_after_a_reset_no_permit_leaves_before_the_next_arming(script: Script) -> None:
    script.path.drop()
    script.tick()
    script.path.reset()
    script.actions.clear()
    script.tick(20)
    assert set(script.actions) == {ACTION_NONE}
    script.path.permit(TOKEN)
    script.tick()
    assert ACTION_PERMIT in script.actions


def test_each_trip_has_its_own_drop(script: Script) -> None:
    for _ in range(3):
        script.flags[3] |= FLAG_TRIPPED
        script.tick(10)
        script.flags[3] &= ~FLAG_TRIPPED
        script.path.reset()
        script.tick(10)
    assert script.actions.count(ACTION_DROP) == 3
    assert int(script.path.monitor.state["trips"]) == 3


def test_silence_is_judged_only_while_permits_are_on(script: Script) -> None:
    script.path.withhold()
    m = script.path.monitor
    assert handle_silence(m.memory[0], script.t_ns + 10**12) == ACTION_NONE
    assert script.path.trip() is None
    script.path.permit(TOKEN)
    assert handle_silence(m.memory[0], script.t_ns + 10**12) == ACTION_DROP
    trip = script.path.trip()
    assert trip is not None
    assert trip.number == numbers.STREAM_SILENT_1


def test_streams_of_different_delay_do_not_mix_up_two_visits() -> None:
    """Electrometer 2's frame from before a change arrives after electrometer 1's frame that shows it."""
    program = programs_of(CARBON, spots([(0.0, 0.0, 20.0), (2.0, 0.0, 2.0), (4.0, 0.0, 2.0)]))[0]
    script = Script(monitor_path(CARBON, [program]), program)
    script.tick(4)
    script.path.permit(TOKEN)
    rate_1, rate_2 = script.rates()
    script.begin(1)
    for _ in range(int(program.visits["preset_counts"][0]) // rate_1):
        script.tick(add_1=rate_1, add_2=rate_2)
    script.begin(2)
    script.tick(add_1=rate_1, without=(2, 3))
    script.visit, change_ns, script.change_ns = 1, script.change_ns, 0
    script.tick(add_2=rate_2, without=(1, 3))
    assert script.path.trip() is None
    script.visit, script.change_ns = 2, change_ns
    assert script.tick(2) is None
    assert script.path.take_measured()["counts_2"].tolist() == [script.change[2]]


def test_a_new_field_hands_over_the_open_row_and_starts_from_the_counters_as_they_are(script: Script) -> None:
    script.deliver(1, TICKS)
    script.begin(0)
    script.tick(without=(2,))
    script.path.load_field(CARBON.treatment_machines["REF-C"], [PROGRAM])
    script.path.allow(1, 25)
    assert script.tick(10) is None
    rows = script.path.take_measured()
    assert rows["visit"].tolist() == [1]
    assert math.isnan(rows["delta_2"][0])
    state = script.path.monitor.state
    assert int(state["field_start_1"]) == script.counts[1]
    assert float(state["particles_1"]) == 0.0


def test_a_field_loaded_before_the_first_frame_does_not_count_what_the_counters_retained() -> None:
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    handle_silence(script.path.monitor.memory[0], script.t_ns)
    assert script.tick(10) is None
    assert int(script.path.monitor.state["field_start_1"]) == 1_000_000


@pytest.mark.parametrize("stream", [2, 3])
def test_permits_wait_for_the_other_streams_as_well(script: Script, stream: int) -> None:
    """Electrometer 1 is fresh, but a permit rests on what the two others last said too."""
    age_ns = int(script.path.monitor.limits["frame_age_ns"])
    script.tick(age_ns // 100_000 + 3, without=(stream,))
    script.actions.clear()
    assert script.tick(10, without=(stream,)) is None
    assert script.actions.count(ACTION_PERMIT) == 0
    assert script.tick(10) is None
    assert script.actions.count(ACTION_PERMIT) > 0


def test_arming_does_not_take_back_a_commanded_drop(script: Script) -> None:
    script.path.drop()
    script.path.permit(99)
    script.actions.clear()
    trip = script.tick(5)
    assert trip is not None
    assert trip.number == numbers.COMMANDED
    assert script.actions.count(ACTION_PERMIT) == 0
    assert script.actions.count(ACTION_DROP) == 1


def test_a_layer_that_does_not_start_with_its_first_visit_trips(script: Script) -> None:
    trip = script.deliver(2, 3)
    assert trip is not None
    assert trip.number == numbers.VISIT_SEQUENCE


def test_beam_that_only_electrometer_2_sees_trips_without_a_request(script: Script) -> None:
    script.tick(10)
    script.flags[2] |= FLAG_BEAM
    trip = script.tick(int(script.path.monitor.limits["proof_ns"]) // 100_000 + 5)
    assert trip is not None
    assert trip.number == numbers.BEAM_WITHOUT_REQUEST
