"""Every real-time condition fires for its cause and not just below its limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from controller.dose.integrator import handle_silence
from controller.dose.path import PathTrip
from drivers.flags import FLAG_BEAM, FLAG_CHAIN, FLAG_HV_OK, FLAG_MOVING, FLAG_REQUEST, FLAG_SATURATED, FLAG_TRIPPED
from drivers.wires.frames import (
    SCAN_BEAM_ON_US,
    SCAN_ENGINE_TRIP,
    SCAN_X_PRIMARY_MA,
    SCAN_X_REDUNDANT_MA,
    SCAN_X_SET_MA,
    SCAN_Y_REDUNDANT_MA,
)
from interlocks import numbers
from interlocks.realtime import MOVING_FRAMES, PART_FRAMES, VISIT_APART_FRAMES
from tests.frame_script import SETTLE_TICKS, Script
from tests.plan_models import spots
from tests.plant_rig import CARBON, LATENCY_NS, TOKEN, monitor_path, programs_of

PROGRAM = programs_of(CARBON, spots([(2.0 * k, 0.0, 2.0) for k in range(25)]))[0]
TICKS = 63
QUIET_TICKS = 103
"""After a request: 10 ms, and what a row of the scan controller comes later."""
"""Ticks of a visit of PROGRAM at its rate."""

Cause = Callable[[Script], object]


@pytest.fixture
def script() -> Script:
    """All streams alive, permits on, no visit yet."""
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(SETTLE_TICKS)
    script.path.permit(TOKEN)
    return script


def limit_of(script: Script, name: str) -> float:
    return float(script.path.monitor.limits[name])


def plan_of(script: Script, name: str, visit: int = 1) -> float:
    return float(script.path.monitor.plan[visit][name])


def lose(stream: int, frames: int) -> Cause:
    def cause(s: Script) -> None:
        s.tick(frames * (2 if stream == 3 else 1), lost=(stream,))
        s.tick(2)

    return cause


def lose_singly(stream: int, frames: int) -> Cause:
    def cause(s: Script) -> None:
        for _ in range(frames):
            s.tick(2 if stream == 3 else 1, lost=(stream,))
            s.tick(6)

    return cause


def silence(stream: int, beyond_ns: int) -> Cause:
    """The last frame is answered at its arrival; the turn at the limit comes without a datagram."""

    def cause(s: Script) -> None:
        s.tick(10, without=(stream,))
        m = s.path.monitor
        now_ns = int(m.streams[stream]["arrival_ns"]) + int(limit_of(s, "stale_ns"))
        for other in {1, 2, 3} - {stream}:
            m.streams[other]["arrival_ns"] = now_ns
        handle_silence(m.memory[0], now_ns + beyond_ns)

    return cause


def restart(stream: int, by: int) -> Cause:
    def cause(s: Script) -> None:
        s.nonce[stream] += by
        s.tick(2)

    return cause


def spot_dose(stream: int, beyond: int) -> Cause:
    def cause(s: Script) -> None:
        preset, slack, floor = {
            1: ("preset", "slack_1", limit_of(s, "spot_dose_counts")),
            2: ("expected_2", "slack_2", limit_of(s, "secondary_counts")),
        }[stream]
        planned = plan_of(s, preset)
        limit = math.floor(planned + max(planned * limit_of(s, "spot_dose"), floor) + plan_of(s, slack))
        s.begin(1)
        s.tick()  # electrometer 2 has shown the start of the visit
        full, rest = divmod(limit + beyond, 100)
        s.tick(full, **{f"add_{stream}": 100})
        s.tick(**{f"add_{stream}": rest})

    return cause


def field_dose(stream: int, beyond: int) -> Cause:
    def cause(s: Script) -> None:
        s.path.monitor.limits[f"field_counts_{stream}"] = 500.0
        s.beam(True)  # else what is counted is pedestal
        s.tick(5, **{f"add_{stream}": 100})
        s.tick(**{f"add_{stream}": beyond})

    return cause


def disagree(share: float) -> Cause:
    def cause(s: Script) -> None:
        for visit in (1, 2):
            s.deliver(visit, TICKS, more_2=1 + share)
        s.begin(3)
        s.tick()

    return cause


def stands_still(stream: int) -> Cause:
    def cause(s: Script) -> None:
        rates = s.rates()
        add = {"add_1": 0 if stream == 1 else rates[0], "add_2": 0 if stream == 2 else rates[1]}
        s.begin(1)
        s.tick(TICKS, **add)
        s.begin(2)
        s.tick()

    return cause


def displaced(shift_mm: float, visits: int = 1) -> Cause:
    def cause(s: Script) -> None:
        s.shift_mm = shift_mm
        for visit in range(1, visits + 1):
            s.deliver(visit, TICKS)
        s.begin(visits + 1)
        s.tick()

    return cause


def near_limit(share: float) -> Cause:
    return lambda s: displaced(share * plan_of(s, "position_limit_mm"))(s)


def widened(factor: float) -> Cause:
    def cause(s: Script) -> None:
        s.widen = factor
        displaced(0.0)(s)

    return cause


def unseen(share: float) -> Cause:
    def cause(s: Script) -> None:
        s.seen = share
        displaced(0.0)(s)

    return cause


def surge(frames: int, beyond: int) -> Cause:
    def cause(s: Script) -> None:
        s.begin(1)
        s.tick(frames, add_1=math.floor(plan_of(s, "rate_limit")) + beyond)
        s.tick()

    return cause


def stray_beam(ticks: int) -> Cause:
    def cause(s: Script) -> None:
        s.flags[1] |= FLAG_BEAM
        s.tick(ticks, add_1=5)

    return cause


def flickering_beam(ticks: int, one_in: int) -> Cause:
    """Beam that nobody asked for, shown in one frame of so many."""

    def cause(s: Script) -> None:
        for tick in range(ticks):
            s.flags[1] = s.flags[1] | FLAG_BEAM if tick % one_in == 0 else s.flags[1] & ~FLAG_BEAM
            s.tick(add_1=4)

    return cause


def beam_for_no_visit(ticks: int) -> Cause:
    """The engine asks for beam after the layer's last visit."""

    def cause(s: Script) -> None:
        s.deliver(1, TICKS)
        s.begin(0)
        s.beam(True)
        s.tick(ticks, add_1=20, add_2=20)

    return cause


def idle_charge(stream: int, beyond: int) -> Cause:
    """Charge below what a frame shows as beam, in the pause after a visit; the first 10 ms are the visit's tail."""

    def cause(s: Script) -> None:
        s.path.monitor.limits[f"idle_counts_{stream}"] = 300.0
        s.deliver(1, TICKS)
        s.begin(0)
        s.tick(QUIET_TICKS)
        s.tick(150, **{f"add_{stream}": 2})
        s.tick(**{f"add_{stream}": beyond})
        s.tick(20)
        s.deliver(2, TICKS)  # whose first frames come before its request shows

    return cause


def idle_before_requests(s: Script) -> None:
    """Charge in the last 2 ms before a request is its beam's, whose frames come before it shows; then a clean pause."""
    s.path.monitor.limits["idle_counts_1"] = 190.0
    for visit, add in ((1, 20), (2, 0)):
        s.deliver(visit, TICKS)
        s.begin(0)
        s.tick(QUIET_TICKS + 40)
        s.tick(19, add_1=add)  # a whole block of ten frames lies in these, and at most nine frames before it


def surge_with_lost_frames(beyond: int) -> Cause:
    """Every second frame is lost, so that the next one shows the counts of two."""

    def cause(s: Script) -> None:
        s.begin(1)
        for _ in range(3):
            s.tick(add_1=math.floor(plan_of(s, "rate_limit")) + beyond, lost=(1,))
            s.tick(add_1=math.floor(plan_of(s, "rate_limit")) + beyond)

    return cause


def beam_after_request(ticks: int) -> Cause:
    def cause(s: Script) -> None:
        s.deliver(1, 10)
        while (s.t_ns // 100_000) % 2 == 0:
            s.tick(add_1=5)
        s.flags[3] &= ~FLAG_REQUEST
        s.tick(1 + ticks, add_1=5)

    return cause


def beam_time(beyond_us: int) -> Cause:
    def cause(s: Script) -> None:
        s.begin(1)
        s.scan[SCAN_BEAM_ON_US] = int(plan_of(s, "time_limit_us")) + beyond_us
        s.tick(2)

    return cause


def flag(stream: int, value: int, on: bool) -> Cause:
    def cause(s: Script) -> None:
        s.flags[stream] = s.flags[stream] | value if on else s.flags[stream] & ~value
        s.tick(2)

    return cause


def engine_trip(s: Script) -> None:
    s.scan[SCAN_ENGINE_TRIP] = 2
    flag(3, FLAG_TRIPPED, True)(s)


def magnet(word: int, scan_frames: int, beyond_ma: int, *, moving: bool = False) -> Cause:
    def cause(s: Script) -> None:
        s.deliver(1, 2)
        s.scan[word] = math.floor(limit_of(s, "window_ma")) + beyond_ma
        if moving:
            s.flags[3] |= FLAG_MOVING
        s.tick(2 * scan_frames)

    return cause


def visits(*ids: int) -> Cause:
    def cause(s: Script) -> None:
        for visit in ids:
            s.begin(visit)
            s.tick(2)

    return cause


def skips_over_lost_frame(s: Script) -> None:
    s.begin(1)
    s.tick(2)
    s.begin(2)
    s.tick(lost=(1, 2))
    s.begin(3)
    s.tick(2)


def stuck_visit_line(scan_frames: int) -> Cause:
    """Electrometer 1 does not see the trigger that the engine raises."""

    def cause(s: Script) -> None:
        s.tick((s.t_ns // 100_000) % 2)
        for _ in range(scan_frames):
            s.tick(without=(3,))
            s.visit = 1
            s.tick(without=(1, 2))
            s.visit = 0

    return cause


def lease(beyond_ns: int) -> Cause:
    def cause(s: Script) -> None:
        end_ns = s.t_ns + LATENCY_NS
        s.path.renew(1, end_ns)
        grace_ns = int(limit_of(s, "lease_grace_ns"))
        m = s.path.monitor
        for stream in (1, 2, 3):
            m.streams[stream]["arrival_ns"] = end_ns + grace_ns
        handle_silence(m.memory[0], end_ns + grace_ns + beyond_ns)

    return cause


def falls(stream: int, by: int) -> Cause:
    def cause(s: Script) -> None:
        s.counts[stream] -= by
        s.tick()

    return cause


def leaks(stream: int, every: int) -> Cause:
    """Without beam flag or request, one count in every so many frames."""

    def cause(s: Script) -> None:
        s.begin(0)
        for _ in range(2500 // every):
            s.tick(every - 1)
            s.tick(**{f"add_{stream}": 1})

    return cause


def creeps(ticks: int) -> Cause:
    """All frames are later from now on, and the offset follows at 10 ns a frame, up to its bound of 1 us."""

    def cause(s: Script) -> None:
        s.path.monitor.limits["clock_drift_ns"] = 1000
        s.late_ns = 1_000_000
        s.tick(ticks)

    return cause


def was_queued(beyond_ns: int) -> Cause:
    """What the offset settled on was a queue: frames suddenly come sooner than it said."""

    def cause(s: Script) -> None:
        s.late_ns = -int(limit_of(s, "clock_drift_ns")) - beyond_ns
        s.tick(2)

    return cause


def hot_strips(count: int) -> Cause:
    """Strips that leak, seen without beam."""

    def cause(s: Script) -> None:
        s.hot = {20 * k: 100 for k in range(1, count + 1)}
        s.tick(900)

    return cause


def dead_strips(*offsets: int, visits: int = 1) -> Cause:
    """Strips in the middle of the first visit's beam, or beside it."""

    def cause(s: Script) -> None:
        s.dead = frozenset(s.strip_at(1, offset) for offset in offsets)
        for visit in range(1, visits + 1):
            s.deliver(visit, TICKS)
        s.begin(0)
        s.tick(4)

    return cause


def nothing(s: Script) -> None:
    for visit in range(1, 25):
        s.deliver(visit, TICKS)
    s.begin(0)
    s.tick(20)


LOST, ALLOWED = 3, 10
FIRES: list[tuple[int, str, Cause]] = [
    *((numbers.FRAME_LOSS_1 + k - 1, f"three frames of stream {k} lost", lose(k, LOST)) for k in (1, 2, 3)),
    *((numbers.FRAME_LOSS_1 + k - 1, f"eleven of stream {k} in a second", lose_singly(k, ALLOWED + 1)) for k in (1, 3)),
    *((numbers.STREAM_SILENT_1 + k - 1, f"stream {k} silent", silence(k, 1)) for k in (1, 2, 3)),
    *((numbers.DEVICE_RESTARTED, f"another nonce on stream {k}", restart(k, 1)) for k in (1, 2, 3)),
    (numbers.SPOT_DOSE_PRIMARY, "one count over the limit", spot_dose(1, 1)),
    (numbers.SPOT_DOSE_SECONDARY, "one count over the limit", spot_dose(2, 1)),
    (numbers.FIELD_DOSE_PRIMARY, "one count over the limit", field_dose(1, 1)),
    (numbers.FIELD_DOSE_SECONDARY, "one count over the limit", field_dose(2, 1)),
    (numbers.MONITORS_DISAGREE, "3.5 %", disagree(0.035)),
    (numbers.MONITORS_DISAGREE, "-3.5 %", disagree(-0.035)),
    (numbers.MONITORS_DISAGREE, "monitor 1 stands still", stands_still(1)),
    (numbers.MONITORS_DISAGREE, "monitor 2 stands still", stands_still(2)),
    (numbers.SPOT_POSITION, "3 % outside", near_limit(1.03)),
    (numbers.SPOT_POSITION, "3 % outside, to the other side", near_limit(-1.03)),
    (numbers.POSITION_MEAN, "20 spots, 0.72 mm", displaced(0.72, 20)),
    (numbers.SPOT_WIDTH, "22 % wide", widened(1.22)),
    (numbers.SPOT_WIDTH, "22 % narrow", widened(0.78)),
    (numbers.RATE_HIGH, "two frames over the limit", surge(2, 1)),
    (numbers.RATE_HIGH, "the limit exceeded while frames are lost", surge_with_lost_frames(1)),
    (numbers.BEAM_WITHOUT_REQUEST, "2.1 ms without a request", stray_beam(22)),
    (numbers.BEAM_WITHOUT_REQUEST, "2.1 ms of beam that flickers", flickering_beam(50, 2)),
    (numbers.BEAM_WITHOUT_REQUEST, "2.1 ms after a request", beam_after_request(22)),
    (numbers.BEAM_WITHOUT_REQUEST, "2.2 ms of beam for no visit", beam_for_no_visit(24)),
    (numbers.IDLE_CHARGE, "electrometer 1", idle_charge(1, 1)),
    (numbers.IDLE_CHARGE, "electrometer 2", idle_charge(2, 1)),
    (numbers.SPOT_TIME, "1 us too long", beam_time(1)),
    (numbers.HIGH_VOLTAGE_1, "flag falls", flag(1, FLAG_HV_OK, False)),
    (numbers.HIGH_VOLTAGE_2, "flag falls", flag(2, FLAG_HV_OK, False)),
    (numbers.SATURATED, "electrometer 1", flag(1, FLAG_SATURATED, True)),
    (numbers.SATURATED, "electrometer 2", flag(2, FLAG_SATURATED, True)),
    (numbers.MAGNET_READBACK, "set-point not reached", magnet(SCAN_X_PRIMARY_MA, 3, 1)),
    (numbers.MAGNET_READBACK, "read-backs differ in x", magnet(SCAN_X_REDUNDANT_MA, 3, 1)),
    (numbers.MAGNET_READBACK, "read-backs differ in y", magnet(SCAN_Y_REDUNDANT_MA, 3, 1)),
    (numbers.MAGNET_READBACK, "moves without end", magnet(SCAN_X_SET_MA, MOVING_FRAMES, 1, moving=True)),
    (numbers.VISIT_SEQUENCE, "after the layer's last", visits(1, 26)),
    (numbers.VISIT_SEQUENCE, "backwards", visits(1, 2, 1)),
    (numbers.VISIT_SEQUENCE, "one left out", visits(1, 3)),
    (numbers.VISIT_SEQUENCE, "the same once more", visits(1, 0, 1)),
    (numbers.VISIT_SEQUENCE, "the layer once more", visits(1, 2, 0, 1)),
    (numbers.VISIT_SEQUENCE, "one left out after none", visits(1, 0, 3)),
    (numbers.VISIT_SEQUENCE, "far beyond the table", visits(1, 2**31)),
    (numbers.VISIT_SEQUENCE, "visit line stuck", stuck_visit_line(VISIT_APART_FRAMES)),
    (numbers.ENGINE_TRIPPED, "the engine says so", engine_trip),
    (numbers.BACKUP_TRIPPED, "electrometer 2 says so", flag(2, FLAG_TRIPPED, True)),
    (numbers.CHAIN_OPENED, "the chain opens", flag(3, FLAG_CHAIN, False)),
    (numbers.LEASE_EXPIRED, "1 ns after its grace", lease(1)),
    (numbers.COMMANDED, "asyncio says so", lambda s: (s.path.drop(), s.tick())),
    (numbers.COUNTS_BACKWARDS, "electrometer 1", falls(1, 4)),
    (numbers.COUNTS_BACKWARDS, "electrometer 2", falls(2, 4)),
    (numbers.PEDESTAL_HIGH, "electrometer 1", leaks(1, 9)),
    (numbers.PEDESTAL_HIGH, "electrometer 2", leaks(2, 9)),
    (numbers.SPOT_NOT_SEEN, "no charge at all", unseen(0.0)),
    (numbers.SPOT_NOT_SEEN, "45 % of the charge", unseen(0.45)),
    (numbers.SPOT_NOT_SEEN, "30 mm away", displaced(30.0)),
    (numbers.CLOCK_DRIFT, "1.01 us where 1 us is allowed", creeps(101)),
    (numbers.CLOCK_DRIFT, "it settled on a queue", was_queued(1)),
    (numbers.STRIPS_BAD, "five hot strips", hot_strips(5)),
    (numbers.SPOT_POSITION, "two dead strips in the middle of the beam, which nobody knows of yet", dead_strips(0, 1)),
    (numbers.STRIP_BIAS, "two dead strips beside the middle of the beam", dead_strips(1, 2)),
]
DOES_NOT_FIRE: list[tuple[str, Cause]] = [
    ("a clean layer", nothing),
    *((f"a pedestal below its limit, monitor {k}", leaks(k, 11)) for k in (1, 2)),
    *((f"two frames of stream {k} lost", lose(k, LOST - 1)) for k in (1, 2, 3)),
    *((f"ten frames of stream {k} in a second", lose_singly(k, ALLOWED)) for k in (1, 2, 3)),
    *((f"stream {k} silent up to the limit", silence(k, 0)) for k in (1, 2, 3)),
    ("the same nonce", restart(1, 0)),
    *((f"a spot at its limit, monitor {k}", spot_dose(k, 0)) for k in (1, 2)),
    *((f"a field at its limit, monitor {k}", field_dose(k, 0)) for k in (1, 2)),
    ("2.5 % more on monitor 2", disagree(0.025)),
    ("2.5 % less on monitor 2", disagree(-0.025)),
    ("a spot 3 % inside its place", near_limit(0.97)),
    ("20 spots, 0.68 mm", displaced(0.68, 20)),
    ("19 spots, 0.72 mm", displaced(0.72, 19)),
    ("18 % wide", widened(1.18)),
    ("18 % narrow", widened(0.82)),
    ("one frame of too high rate", surge(1, 1)),
    ("ten frames at the limit of rate", surge(10, 0)),
    ("the limit of rate while frames are lost", surge_with_lost_frames(0)),
    ("a flicker of 1.75 ms in all", flickering_beam(40, 2)),
    ("beam shown by one frame in ten, for a tenth of a second", flickering_beam(1000, 10)),
    ("stray beam for 2 ms", stray_beam(21)),
    ("beam for no visit for 1.9 ms", beam_for_no_visit(20)),
    *((f"idle charge at its limit, monitor {k}", idle_charge(k, 0)) for k in (1, 2)),
    ("a pause between visits", visits(1, 0, 2)),
    ("charge just before a request", idle_before_requests),
    ("beam for 2 ms after a request", beam_after_request(21)),
    ("beam time at its limit", beam_time(0)),
    ("two frames outside the window", magnet(SCAN_X_PRIMARY_MA, 2, 1)),
    ("at the window's edge", magnet(SCAN_X_PRIMARY_MA, 9, 0)),
    ("moving for 0.8 ms", magnet(SCAN_X_SET_MA, MOVING_FRAMES - 1, 1, moving=True)),
    ("a visit passed over with a lost frame", skips_over_lost_frame),
    ("visit lines apart for 0.8 ms", stuck_visit_line(VISIT_APART_FRAMES - 1)),
    ("a lease at the end of its grace", lease(0)),
    *((f"a pedestal of -3 counts on monitor {k}", falls(k, 3)) for k in (1, 2)),
    ("55 % of the charge seen", unseen(0.55)),
    ("a clock that creeps up to its bound", creeps(100)),
    ("a clock that falls to its bound", was_queued(0)),
    ("four hot strips", hot_strips(4)),
    *((f"one dead strip, {k} beside the middle", dead_strips(k, visits=5)) for k in (-2, -1, 0, 1, 2)),
    ("two dead strips, one between them", dead_strips(-1, 1, visits=5)),
]


@pytest.mark.parametrize(("number", "what", "cause"), FIRES, ids=[f"{number} {what}" for number, what, _ in FIRES])
def test_the_cause_latches_its_condition(script: Script, number: int, what: str, cause: Cause) -> None:
    cause(script)
    trip = script.path.trip()
    assert trip is not None
    assert trip.number == number


@pytest.mark.parametrize(("what", "cause"), DOES_NOT_FIRE, ids=[what for what, _ in DOES_NOT_FIRE])
def test_just_below_its_limit_nothing_latches(script: Script, what: str, cause: Cause) -> None:
    cause(script)
    assert script.path.trip() is None


def test_a_long_visit_that_goes_astray_does_not_wait_for_its_end(script: Script) -> None:
    add_1, add_2 = script.rates()
    script.begin(1)
    script.tick(24, add_1=add_1, add_2=add_2)
    script.shift_mm = 1.03 * plan_of(script, "position_limit_mm")
    for _ in range(2 * PART_FRAMES):
        trip = script.tick(add_1=add_1, add_2=add_2)
        if trip is not None:
            break
    assert trip is not None
    assert (trip.number, trip.visit) == (numbers.SPOT_POSITION, 1)


def test_the_rest_of_a_visit_is_judged_with_its_end(script: Script) -> None:
    add_1, add_2 = script.rates()
    script.begin(1)
    script.tick(20, add_1=add_1, add_2=add_2)
    script.shift_mm = 1.5 * plan_of(script, "position_limit_mm")
    assert script.tick(10, add_1=add_1, add_2=add_2) is None, "of the whole visit, within its limit"
    script.begin(2)
    trip = script.tick()
    assert trip is not None
    assert (trip.number, trip.visit) == (numbers.SPOT_POSITION, 1)


def without_beam(s: Script, ticks: int, every: int) -> PathTrip | None:
    """A count of both monitors in one of so many ticks."""
    for _ in range(ticks // every):
        s.tick(every - 1)
        s.tick(add_1=1, add_2=1)
    return s.path.trip()


def test_a_fields_pedestal_is_what_was_counted_before_it_and_not_what_is_counted_now(script: Script) -> None:
    assert without_beam(script, 3000, 20) is None
    script.path.load_field(next(iter(CARBON.treatment_machines.values())), [PROGRAM])
    script.path.allow(1, 25)
    script.path.monitor.limits["idle_counts_1"] = script.path.monitor.limits["idle_counts_2"] = 10.0
    assert without_beam(script, 3000, 20) is None, "500 counts a second, as before the field"
    trip = without_beam(script, 500, 10)
    assert trip is not None, "1,000 counts a second, which PEDESTAL_HIGH lets pass"
    assert (trip.number, trip.limit) == (numbers.IDLE_CHARGE, 10.0)
    assert 10.0 < trip.value < 11.0


def test_a_pedestal_that_falls_would_hide_a_leak(script: Script) -> None:
    without_beam(script, 3000, 20)
    script.path.load_field(next(iter(CARBON.treatment_machines.values())), [PROGRAM])
    script.path.allow(1, 25)
    script.path.monitor.limits["idle_counts_2"] = 10.0
    trip = script.tick(240)
    assert trip is not None
    assert trip.number == numbers.IDLE_CHARGE
    assert -11.0 < trip.value < -10.0


def test_a_pedestal_that_rises_in_a_long_field_takes_nothing_from_what_the_field_has_got(script: Script) -> None:
    limits = script.path.monitor.limits
    limits["idle_counts_1"] = limits["idle_counts_2"] = 1e9
    limits["field_counts_1"] = 1000.0
    for _ in range(4):
        script.beam(True)
        script.tick(2, add_1=125)
        script.beam(False)
        script.tick(QUIET_TICKS)
    assert script.path.trip() is None, "at its limit"
    trip = without_beam(script, 3000, 12)
    assert trip is not None
    assert (trip.number, trip.value) == (numbers.FIELD_DOSE_PRIMARY, 1001.0)


def test_a_pause_in_a_visit_counts_its_pedestal_as_it_is_and_not_by_its_last_seconds(script: Script) -> None:
    limits = script.path.monitor.limits
    limits["idle_counts_1"] = limits["idle_counts_2"] = 1e9
    add_1, add_2 = script.rates()
    script.begin(1)
    script.tick(20, add_1=add_1, add_2=add_2)
    script.beam(False)
    # a pedestal that fades: by what is left of it at the end the visit would have got the rest as dose
    assert without_beam(script, 6000, 12) is None
    assert script.tick(6000) is None
    script.beam(True)
    script.tick(TICKS - 20, add_1=add_1, add_2=add_2)
    assert script.deliver(2, TICKS) is None
    row = script.path.take_measured()[0]
    assert row["pedestal_1"] == row["pedestal_2"] == pytest.approx(500, abs=10)
    assert row["delta_1"] - row["late_1"] == pytest.approx(TICKS * add_1, abs=12)
    assert row["delta_2"] - row["late_2"] == pytest.approx(TICKS * add_2, abs=12)


@pytest.mark.parametrize("stream", [1, 2])
def test_a_visits_dose_is_less_the_pedestal_of_its_own_time_and_of_no_other(script: Script, stream: int) -> None:
    script.path.monitor.limits["idle_counts_1"] = script.path.monitor.limits["idle_counts_2"] = 1e9
    without_beam(script, 6000, 20)  # 500 counts a second: ten in the visit, three hundred since the beginning
    spot_dose(stream, 40)(script)
    trip = script.path.trip()
    assert trip is not None
    assert trip.number == (numbers.SPOT_DOSE_PRIMARY if stream == 1 else numbers.SPOT_DOSE_SECONDARY)
    assert trip.limit < trip.value < trip.limit + 40.0


def test_every_number_has_a_cause_here() -> None:
    assert {number for number, _, _ in FIRES} == set(all_numbers().values())


def all_numbers() -> dict[str, int]:
    found = {name: value for name, value in vars(numbers).items() if name.isupper() and isinstance(value, int)}
    return {name: value for name, value in found.items() if value != numbers.NONE}
