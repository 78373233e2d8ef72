"""Which frames count and how old they are, what a new field and a reset forget, and the engine's frames."""

from __future__ import annotations

import math
from typing import Any

import pytest

from controller.dose.frame_clock import OFFSET_CREEP_NS, ROW_NS, SETTLE_FALL_NS, SETTLE_NS
from controller.dose.integrator import ACTION_NONE, ACTION_PERMIT, handle_silence
from controller.record.schema import QUALITY_FRAMES_LOST
from drivers.flags import FLAG_ARMED, FLAG_CHAIN, FLAG_MOVING, FLAG_REQUEST
from drivers.wires.frames import (
    FRAME_NS,
    SCAN_BEAM_ON_US,
    SCAN_X_REDUNDANT_MA,
    SCAN_X_SET_MA,
    SCAN_Y_REDUNDANT_MA,
    SCAN_Y_SET_MA,
    Frame,
    encode,
)
from interlocks import numbers
from interlocks.realtime import MOVING_FRAMES, OFF_WINDOW_FRAMES, VISIT_APART_FRAMES
from tests.frame_script import SETTLE_TICKS, Script
from tests.plan_models import spots
from tests.plant_rig import CARBON, LATENCY_NS, TOKEN, Datagram, feed, monitor_path, programs_of

PROGRAM = programs_of(CARBON, spots([(2.0 * k, 0.0, 2.0) for k in range(25)]))[0]
STREAMS = (1, 2, 3)
TO_SETTLE = SETTLE_NS // FRAME_NS
WORDS_MA = {0: 50_000, 1: -30_000, 2: 50_000, 3: -30_000, 4: 50_000, 5: -30_000}
"""Set and read back currents of both axes, all as they should be, and none of them 0."""


@pytest.fixture
def script() -> Script:
    """All streams alive, their clocks not trusted yet, permits on: conditions are judged, and no permit leaves."""
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(4)
    script.path.permit(TOKEN)
    return script


def settled() -> Script:
    """The same with clocks that are trusted."""
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(SETTLE_TICKS)
    script.path.permit(TOKEN)
    script.actions.clear()
    return script


def tripped(script: Script) -> int:
    return int(script.path.monitor.state["trip"])


def stream(script: Script, number: int) -> Any:
    return script.path.monitor.streams[number]


def scan_ticks(script: Script, frames: int = 1) -> None:
    """So many frames of the scan controller."""
    script.tick(2 * frames)


# ------------------------------------------------------------------ frames of the scan controller


def test_a_chain_opens_once_and_only_while_something_is_permitted(script: Script) -> None:
    script.path.withhold()
    script.flags[3] &= ~FLAG_CHAIN
    scan_ticks(script)
    assert tripped(script) == numbers.NONE
    script.path.permit(TOKEN)
    scan_ticks(script, 3)
    assert tripped(script) == numbers.NONE, "it was open before"
    script.flags[3] |= FLAG_CHAIN
    scan_ticks(script)
    script.flags[3] &= ~FLAG_CHAIN
    scan_ticks(script)
    assert tripped(script) == numbers.CHAIN_OPENED


@pytest.mark.parametrize("moving", [(False, False, True), (False, True, False)], ids=["begins", "has just ended"])
def test_magnets_have_longer_while_they_move_or_moved_a_frame_ago(script: Script, moving: tuple[bool, ...]) -> None:
    script.flags[3] |= FLAG_REQUEST
    script.scan = {**WORDS_MA, SCAN_X_SET_MA: 0}
    assert len(moving) == OFF_WINDOW_FRAMES < MOVING_FRAMES
    for moves in moving:
        script.flags[3] = script.flags[3] | FLAG_MOVING if moves else script.flags[3] & ~FLAG_MOVING
        scan_ticks(script)
    assert tripped(script) == numbers.NONE
    script.flags[3] &= ~FLAG_MOVING
    scan_ticks(script, 2)
    assert tripped(script) == numbers.MAGNET_READBACK


@pytest.mark.parametrize("word", [SCAN_X_SET_MA, SCAN_Y_SET_MA, SCAN_X_REDUNDANT_MA, SCAN_Y_REDUNDANT_MA])
@pytest.mark.parametrize("sign", [-1, 1])
def test_each_current_may_differ_by_the_window_to_either_side(script: Script, word: int, sign: int) -> None:
    window_ma = math.floor(float(script.path.monitor.limits["window_ma"]))
    script.flags[3] |= FLAG_REQUEST
    script.scan = {**WORDS_MA, word: WORDS_MA[word] + sign * window_ma}
    scan_ticks(script, 2 * MOVING_FRAMES)
    assert tripped(script) == numbers.NONE
    script.scan[word] += sign
    scan_ticks(script, OFF_WINDOW_FRAMES)
    assert tripped(script) == numbers.MAGNET_READBACK


def test_currents_are_judged_while_the_armed_engine_asks_for_beam(script: Script) -> None:
    script.scan = {**WORDS_MA, SCAN_X_SET_MA: 0}
    scan_ticks(script, 2 * MOVING_FRAMES)
    script.flags[3] = script.flags[3] & ~FLAG_ARMED | FLAG_REQUEST
    scan_ticks(script, 2 * MOVING_FRAMES)
    assert tripped(script) == numbers.NONE
    script.flags[3] |= FLAG_ARMED
    scan_ticks(script, OFF_WINDOW_FRAMES)
    assert tripped(script) == numbers.MAGNET_READBACK


def test_frames_outside_the_window_count_in_a_row_only(script: Script) -> None:
    script.flags[3] |= FLAG_REQUEST
    for _ in range(3):
        script.scan = {**WORDS_MA, SCAN_X_SET_MA: 0}
        scan_ticks(script, OFF_WINDOW_FRAMES - 1)
        script.scan = WORDS_MA
        scan_ticks(script)
    assert tripped(script) == numbers.NONE


def test_visit_lines_that_differ_count_in_a_row_only(script: Script) -> None:
    script.tick((script.t_ns // FRAME_NS) % 2)
    for _ in range(3):
        for _ in range(VISIT_APART_FRAMES - 1):
            script.tick(without=(3,))
            script.visit = 1
            script.tick(without=(1, 2))
            script.visit = 0
        scan_ticks(script)
    assert tripped(script) == numbers.NONE


def test_beam_time_of_no_visit_is_not_judged(script: Script) -> None:
    script.scan[SCAN_BEAM_ON_US] = 5
    scan_ticks(script)
    assert tripped(script) == numbers.NONE


def test_the_first_visit_beyond_the_table_is_out_of_order_and_nothing_else(script: Script) -> None:
    script.visit = len(script.path.monitor.plan)
    script.tick((script.t_ns // FRAME_NS) % 2)
    script.scan[SCAN_BEAM_ON_US] = 5
    script.tick(2, without=(1, 2))
    assert tripped(script) == numbers.NONE, "electrometer 1 has not shown it"
    scan_ticks(script)
    assert tripped(script) == numbers.VISIT_SEQUENCE


# ------------------------------------------------------------------ sequence, loss and restart


@pytest.mark.parametrize("number", STREAMS)
def test_a_frame_with_a_new_number_and_an_old_time_does_not_count(script: Script, number: int) -> None:
    counted = int(stream(script, number)["frames"])
    script.t_ns -= 2 * FRAME_NS
    script.tick(2, without=set(STREAMS) - {number})
    assert int(stream(script, number)["frames"]) == counted
    assert int(stream(script, number)["repeated"]) == (1 if number == 3 else 2)
    script.tick(2)
    assert tripped(script) == numbers.NONE


def test_a_loss_counts_for_the_ten_thousand_frames_in_which_it_was(script: Script) -> None:
    one = stream(script, 1)
    for since, forgotten in ((9_999, False), (10_000, True)):
        one["window_start"], one["window_lost"] = script.sequence[1] + 1 - since, 10
        script.tick(without=(2, 3))
        assert int(one["window_lost"]) == (0 if forgotten else 10)
    assert int(one["window_start"]) == script.sequence[1]
    script.tick(lost=(1,))
    script.tick()
    assert (int(one["lost"]), int(one["window_lost"])) == (1, 1)
    assert tripped(script) == numbers.NONE


def test_a_device_whose_boot_nonce_is_0_begins_like_any_other() -> None:
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM, nonce=dict.fromkeys(STREAMS, 0))
    script.tick(4)
    assert tripped(script) == numbers.NONE
    assert [int(stream(script, n)["lost"]) for n in STREAMS] == [0, 0, 0]


def test_a_device_that_restarted_is_a_stream_that_begins_anew() -> None:
    script = settled()
    one = stream(script, 1)
    script.tick(lost=(1,))
    script.tick()
    assert int(one["window_lost"]) == 1
    script.nonce[1], script.sequence[1] = 99, 6
    script.t_ns -= 20_000_000  # its clock begins elsewhere
    script.late_ns = 23_000_000
    script.tick()
    assert tripped(script) == numbers.DEVICE_RESTARTED
    assert (int(one["settled"]), int(one["offset_ns"])) == (0, LATENCY_NS + 23_000_000)
    assert (int(one["window_start"]), int(one["window_lost"]), int(one["sequence"])) == (7, 0, 7)
    assert (int(one["settle_ns"]), int(one["settle_offset_ns"])) == (int(one["arrival_ns"]), int(one["offset_ns"]))
    script.tick()
    assert int(one["repeated"]) == 0
    script.path.reset()
    script.path.permit(TOKEN)
    script.actions.clear()
    script.tick(TO_SETTLE - 2)
    assert script.actions.count(ACTION_PERMIT) == 0, "its clock is not trusted yet"


# ------------------------------------------------------------------ clocks


@pytest.mark.parametrize("late", STREAMS)
def test_no_permit_leaves_before_the_clock_of_each_stream_has_settled(late: int) -> None:
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(20, without=(late,))
    script.tick(2)
    script.path.permit(TOKEN)
    script.tick(TO_SETTLE - 4)
    assert ACTION_PERMIT not in script.actions
    script.tick(6)
    assert ACTION_PERMIT in script.actions


def test_a_clock_settles_ten_milliseconds_after_its_first_frame() -> None:
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(TO_SETTLE)
    assert int(stream(script, 1)["settled"]) == 0
    script.tick()
    assert int(stream(script, 1)["settled"]) == 1
    assert int(stream(script, 1)["anchor_ns"]) == LATENCY_NS


@pytest.mark.parametrize(("fall_ns", "anew"), [(SETTLE_FALL_NS // 2, 0), (SETTLE_FALL_NS, 0), (SETTLE_FALL_NS + 1, 1)])
def test_a_fall_by_more_than_jitter_begins_the_settling_anew(fall_ns: int, anew: int) -> None:
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(10)
    script.late_ns = -fall_ns
    script.tick(TO_SETTLE - 8)  # they arrive the sooner, by the fall
    assert int(stream(script, 1)["settled"]) == 1 - anew
    script.tick(10)
    assert int(stream(script, 1)["settled"]) == 1
    assert int(stream(script, 1)["anchor_ns"]) == LATENCY_NS - fall_ns


def test_the_offset_follows_down_at_once_and_up_at_its_pace() -> None:
    script = settled()
    script.late_ns = 1_000_000
    script.tick(3)
    assert int(stream(script, 1)["offset_ns"]) == LATENCY_NS + 3 * OFFSET_CREEP_NS
    script.late_ns = -1000
    script.tick()
    assert int(stream(script, 1)["offset_ns"]) == LATENCY_NS - 1000


@pytest.mark.parametrize(("late_ns", "sign"), [(100_000, 1), (-100_000, -1)])
def test_a_clock_that_drifts_says_by_how_much(late_ns: int, sign: int) -> None:
    script = settled()
    script.path.monitor.limits["clock_drift_ns"] = 1000
    script.late_ns = late_ns
    for _ in range(101):
        trip = script.tick()
        if trip is not None:
            break
    assert trip is not None
    assert trip.number == numbers.CLOCK_DRIFT
    assert trip.value == pytest.approx(1010e-6 if sign > 0 else -0.1)
    assert trip.limit == pytest.approx(1000e-6)


@pytest.mark.parametrize(("number", "grace_ns"), [(1, 0), (2, FRAME_NS), (3, ROW_NS)])
def test_a_permit_rests_on_frames_up_to_their_very_age(number: int, grace_ns: int) -> None:
    script = settled()
    script.path.monitor.limits["frame_age_ns"] = age_ns = 500_000
    state = stream(script, number)
    for beyond_ns, permitted in ((0, 1), (1, 0)):
        # the smallest delay of this stream is so much less than that of the frame that comes next
        script.tick((script.t_ns // FRAME_NS) % 2)
        newest_ns = script.t_ns + FRAME_NS
        state["anchor_ns"] = state["offset_ns"] = LATENCY_NS - age_ns - beyond_ns
        late = 0
        if number == 1:
            state["offset_ns"] -= OFFSET_CREEP_NS  # before it creeps
            state["anchor_ns"] = state["offset_ns"]
            late = int(state["late"])
        else:
            state["t_ns"] = newest_ns - grace_ns
        script.actions.clear()
        script.tick(without={2, 3})
        assert script.actions == [ACTION_PERMIT if permitted else ACTION_NONE]
        if number == 1:
            assert int(state["late"]) - late == 1 - permitted


# ------------------------------------------------------------------ what asyncio asks for


def test_a_new_field_begins_with_counters_clocks_and_means_as_they_are_now() -> None:
    script = settled()
    state = script.path.monitor.state
    script.deliver(1, 63)
    script.begin(0)
    script.tick(without=(2,))
    for number in STREAMS:
        stream(script, number)["anchor_ns"] -= 500
    state["mean_count"], state["visits"], state["particles_2"] = 3, 4, 5.0
    script.path.monitor.limits["known_x_0"] = 1 << 7  # a strip that the site knows to be bad
    script.path.load_field(CARBON.treatment_machines["REF-C"], [PROGRAM])
    handle_silence(script.path.monitor.memory[0], script.t_ns + LATENCY_NS)
    assert [int(state[f"field_start_{n}"]) for n in (1, 2)] == [int(state[f"counts_{n}"]) for n in (1, 2)]
    assert [int(state[f"field_start_{n}_ns"]) for n in (1, 2)] == [int(stream(script, n)["t_ns"]) for n in (1, 2)]
    assert [float(state[n]) for n in ("mean_count", "visits", "particles_1", "particles_2")] == [0.0] * 4
    assert int(state["bad_x"]) == 1
    assert int(script.path.monitor.running["visit"]) == 0
    assert [int(stream(script, n)["anchor_ns"]) for n in STREAMS] == [
        int(stream(script, n)["offset_ns"]) for n in STREAMS
    ]
    handed_over = script.path.take_measured()
    assert handed_over["visit"].tolist() == [1]
    assert handed_over["quality"][0] & QUALITY_FRAMES_LOST
    particles = float(state["particles_1"])
    script.tick(2)
    handle_silence(script.path.monitor.memory[0], script.t_ns + LATENCY_NS)
    assert (len(script.path.take_measured()), float(state["particles_1"])) == (0, particles), "once"


def test_a_new_field_forgets_the_visit_that_still_ran(script: Script) -> None:
    script.deliver(1, 5)
    assert int(script.path.monitor.running["visit"]) == 1
    script.path.load_field(CARBON.treatment_machines["REF-C"], [PROGRAM])
    handle_silence(script.path.monitor.memory[0], script.t_ns)
    assert int(script.path.monitor.running["visit"]) == 0


@pytest.mark.parametrize("number", [1, 2])
def test_a_field_that_begins_before_a_monitor_has_spoken_starts_with_its_first_frame(number: int) -> None:
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(2, without=(number,))
    script.path.load_field(CARBON.treatment_machines["REF-C"], [PROGRAM])
    handle_silence(script.path.monitor.memory[0], script.t_ns)
    assert int(script.path.monitor.state[f"field_start_{number}"]) == -1
    script.tick()
    assert int(script.path.monitor.state[f"field_start_{number}"]) == script.counts[number]


@pytest.mark.parametrize("condition", [numbers.CLOCK_DRIFT, numbers.RATE_HIGH])
def test_a_reset_forgets_what_led_to_a_trip_and_clocks_only_where_one_drifted(condition: int) -> None:
    script = settled()
    state = script.path.monitor.state
    state["trip"], state["trip_value"], state["trip_limit"] = condition, 3.0, 2.0
    begun = {"over_rate": 1, "off_window": 2, "visit_apart": 4, "unasked_ns": 1_900_000}
    for name, value in begun.items():
        state[name] = value
    for number in STREAMS:
        stream(script, number)["window_lost"] = 10
        stream(script, number)["anchor_ns"] -= 500
    script.path.reset()
    handle_silence(script.path.monitor.memory[0], script.t_ns + LATENCY_NS)
    assert [float(state[name]) for name in ("trip", "trip_value", "trip_limit")] == [0.0] * 3
    assert {name: int(state[name]) for name in begun} == {
        "over_rate": 0,
        "off_window": 0,
        "visit_apart": 0,
        "unasked_ns": -1,
    }
    assert [int(stream(script, n)["window_lost"]) for n in STREAMS] == [0, 0, 0]
    moved = [int(stream(script, n)["offset_ns"]) - int(stream(script, n)["anchor_ns"]) for n in STREAMS]
    assert moved == ([0, 0, 0] if condition == numbers.CLOCK_DRIFT else [500, 500, 500])
    state["trip"] = condition
    handle_silence(script.path.monitor.memory[0], script.t_ns + LATENCY_NS)
    assert tripped(script) == condition, "one reset, once"


# ------------------------------------------------------------------ datagrams


def test_what_is_no_frame_is_counted_for_what_it_is(script: Script) -> None:
    state, frames = script.path.monitor.state, int(stream(script, 2)["frames"])
    sequence, t_ns = script.sequence[2] + 1, script.t_ns + FRAME_NS
    good = encode(
        Frame(2, script.nonce[2], sequence, t_ns, 0, script.flags[2], script.counts[2], script.counts[2], 0, ())
    )

    def give(data: bytes) -> tuple[int, ...]:
        feed(script.path, [Datagram(data, t_ns + LATENCY_NS)])
        counted = tuple(int(state[name]) for name in ("foreign", "corrupt", "torn"))
        return (*counted, int(stream(script, 2)["frames"]) - frames)

    assert give(b"X" + good[1:]) == (1, 0, 0, 0)
    assert give(bytes([*good[:40], good[40] ^ 1, *good[41:]])) == (1, 1, 0, 0)
    assert give(good[:-4]) == (1, 1, 1, 0)
    assert give(good) == (1, 1, 1, 1)
