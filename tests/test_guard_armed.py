"""The armed field: which layers may run, and what latches at a turn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interlocks import guard_digest as d
from interlocks.guard_armed import Heard, ages_of, is_fresh
from interlocks.guard_judge import BEAM_FLOOR_NS
from interlocks.guard_numbers import expected_fields
from interlocks.guard_state import Delivered
from interlocks.guard_stream import DRIFT_SHARE, Stream
from tests.guard_talk import MS, RULES, SITE, TURN_S, Talk, plan

LEASE_MS, TIME_OUT_MS, STALE_MS = SITE.permits.lease_ms, SITE.permits.time_out_ms, SITE.permits.stale_ms
FRESH_MS = 20.0
"""Two turns of 10 ms; more than the site's age of a frame."""


def test_a_layer_may_run_once_it_was_named_and_in_its_order() -> None:
    talk = Talk().running()
    armed = talk.field
    assert armed.limits is not None
    assert (armed.layer, armed.allowed_ns, armed.limits.first_visit, armed.limits.last_visit) == (0, talk.now_ns, 1, 12)
    assert talk.pass_ms(1)
    talk.wish(layer=0)
    armed = talk.field
    allowed_ns = armed.allowed_ns
    assert armed.allowed_ns < talk.now_ns  # said once more: nothing new
    talk.wish(layer=1)
    armed = talk.field
    assert armed.limits is not None
    assert (armed.layer, armed.limits.first_visit, talk.latched) == (1, 13, "")
    assert armed.allowed_ns == talk.now_ns > allowed_ns


def test_a_layer_may_come_in_two_parts_the_second_behind_the_first() -> None:
    talk = Talk().armed()
    talk.wish(layer=0, first_visit=3, last_visit=3)
    assert talk.mind.armed is not None
    assert talk.mind.armed.limits is not None
    assert talk.mind.armed.limits.last_visit == 3
    talk.wish(layer=0, first_visit=3, last_visit=12)  # not behind it
    assert talk.mind.armed.limits.last_visit == 3
    talk.wish(layer=0, first_visit=4, last_visit=12)
    assert (talk.mind.armed.limits.last_visit, talk.latched) == (12, "")


@pytest.mark.parametrize(
    ("wish", "latched"),
    [
        ({"layer": 0}, "GUARD_CONTROLLER"),  # back
        ({"layer": 2}, "GUARD_CONTROLLER"),  # no such layer
        ({"layer": 1, "first_visit": 12}, "GUARD_CONTROLLER"),
        ({"layer": 1, "last_visit": 25}, "GUARD_CONTROLLER"),
        ({"layer": 1, "first_visit": 13, "last_visit": 24}, ""),
        ({"layer": 1, "first_visit": 14, "last_visit": 20}, ""),
    ],
)
def test_only_the_visits_of_the_next_layers_are_allowed(wish: dict[str, int], latched: str) -> None:
    talk = Talk().armed()
    if wish["layer"] == 0:
        talk.wish(layer=1)
    talk.wish(**wish)
    assert talk.latched == latched


@pytest.mark.parametrize(("ms", "permitted"), [(FRESH_MS, True), (FRESH_MS + 0.001, False)])
def test_a_permit_rests_on_a_fresh_frame(ms: float, permitted: bool) -> None:
    talk = Talk().armed()
    assert talk.pass_ms(ms, silent=True) is permitted
    assert talk.latched == ""


@pytest.mark.parametrize(("ms", "permitted"), [(LEASE_MS, True), (LEASE_MS + 0.001, False)])
def test_a_permit_rests_on_a_controller_that_was_heard_lately(ms: float, permitted: bool) -> None:
    talk = Talk().armed()
    assert talk.pass_ms(ms) is permitted
    assert talk.latched == ""


def test_what_was_never_heard_or_is_heard_in_the_future_is_not_fresh() -> None:
    ages, now_ns = ages_of(SITE, RULES, TURN_S), 1000 * MS
    stream = Stream(nonce=1, offset_ns=0, came_ns=now_ns, made_ns=now_ns)
    assert is_fresh(Heard(wish_ns=now_ns, stream=stream), ages, now_ns)
    for other in (None, now_ns + 1):
        assert not is_fresh(Heard(wish_ns=other, stream=stream), ages, now_ns)
    for late in (None, replace(stream, made_ns=now_ns + 1)):
        assert not is_fresh(Heard(wish_ns=now_ns, stream=late), ages, now_ns)


@pytest.mark.parametrize(
    ("ms", "latched"), [(LEASE_MS + TIME_OUT_MS, ""), (LEASE_MS + TIME_OUT_MS + 0.001, "GUARD_CONTROLLER")]
)
def test_a_controller_that_stays_silent_is_latched(ms: float, latched: str) -> None:
    talk = Talk().armed()
    talk.pass_ms(ms)
    assert talk.latched == latched


@pytest.mark.parametrize(("ms", "latched"), [(STALE_MS, ""), (STALE_MS + 0.001, "GUARD_FRAMES")])
def test_a_stream_that_stays_silent_is_latched(ms: float, latched: str) -> None:
    talk = Talk().armed()
    talk.pass_ms(ms, silent=True)
    assert talk.latched == latched


def turn(talk: Talk, ms: float, lag_ms: float = 0.0) -> bool:
    """A turn with a frame that took so much longer on its way than the first; is there a permit."""
    talk.now_ns += round(ms * MS)
    talk.t_ns += round(ms * MS)
    t_ns = talk.t_ns - round(lag_ms * MS)
    d.take_frame(talk.digest, 1, t_ns, talk.visit, talk.flags, talk.counts)
    talk.chain()
    talk.say(talk.wished)
    return talk.turn()


@pytest.mark.parametrize(("lag_ms", "permitted"), [(FRESH_MS, True), (FRESH_MS + 0.001, False)])
def test_a_frame_that_came_just_now_but_was_long_on_its_way_earns_no_permit(lag_ms: float, permitted: bool) -> None:
    talk = Talk().running()
    assert turn(talk, 50) is True
    assert turn(talk, 50, lag_ms - 0.005) is True  # the offset may have risen by 100 ppm of the time
    assert talk.mind.frame_age_ns(talk.now_ns) == round((lag_ms - 0.01) * MS)
    assert turn(talk, 50, lag_ms + 0.01) is permitted
    assert talk.latched == ""


def test_a_queue_that_grows_earns_no_permits_and_is_latched_when_that_lasts() -> None:
    talk = Talk().running()
    permits = []
    while not talk.latched and len(permits) < 100:
        permits.append(turn(talk, 10, 5.0 * len(permits)))
    assert permits == [True] * 5 + [False] * (len(permits) - 5)
    assert (talk.latched, len(permits)) == ("GUARD_FRAMES", 5 + 1 + STALE_MS / 10 + 1)
    assert talk.mind.latched is not None
    assert talk.mind.latched.value == pytest.approx(5.0 * (len(permits) - 1), abs=0.1)
    assert (talk.mind.latched.limit, talk.mind.latched.detail) == (FRESH_MS, "frames of electrometer 2 come late")


def test_frames_that_were_late_for_a_turn_are_nothing_once_they_come_in_time_again() -> None:
    talk = Talk().running()
    for _ in range(30):
        assert not turn(talk, STALE_MS / 4, 150.0)
        assert turn(talk, 10)  # a stalled computer's queue has drained
    assert talk.latched == ""


def test_a_turn_that_comes_late_itself_makes_nothing_last() -> None:
    talk = Talk().running()
    assert turn(talk, 10)
    assert not turn(talk, 240, 215)  # the kernel's buffer held the first 25 ms of a stall
    assert turn(talk, 10)
    assert talk.latched == ""


def test_a_field_that_is_armed_while_frames_are_late_is_latched() -> None:
    talk = Talk().agreed()
    talk.pass_ms(1)
    for _ in range(30):
        turn(talk, 10, 300.0)
    talk.wish()
    assert not turn(talk, 10, 300.0)
    assert talk.latched == "GUARD_FRAMES"


@pytest.mark.parametrize("ppm", [-200, -50, 50, 90])
def test_a_clock_that_drifts_as_quartz_clocks_do_costs_no_permit(ppm: int) -> None:
    talk = Talk().running()
    drift_ms = SITE.permits.clock_drift_max_ms
    late_ms = 0.0
    while abs(late_ms) < drift_ms:
        late_ms += 50 * ppm * 1e-6
        assert turn(talk, 50, late_ms)
    assert talk.latched == ""


def test_a_queue_that_grows_as_slowly_as_clocks_drift_does_not_hide_for_ever() -> None:
    talk = Talk().running()
    drift_ms, late_ms = SITE.permits.clock_drift_max_ms, 0.0
    while turn(talk, 50, late_ms) and late_ms < 10 * drift_ms:
        late_ms += 50 / DRIFT_SHARE
    assert late_ms == pytest.approx(drift_ms + FRESH_MS, abs=0.01)
    talk = Talk().agreed()  # nothing is armed: nothing is bounded
    talk.pass_ms(1)
    late_ms = 0.0
    while late_ms < 2 * (drift_ms + FRESH_MS):
        late_ms += 50 / DRIFT_SHARE
        turn(talk, 50, late_ms)
    talk.wish()
    assert turn(talk, 50, late_ms)


def test_another_power_up_has_another_clock() -> None:
    talk = Talk().agreed()
    talk.pass_ms(1)
    talk.now_ns += 10 * MS
    d.take_frame(talk.digest, 2, 1000, 0, talk.flags, talk.counts)  # its time begins anew
    talk.turn()
    assert talk.mind.frame_age_ns(talk.now_ns) == 0
    talk.now_ns += MS
    d.take_frame(talk.digest, 2, 1000 + MS, 0, talk.flags, talk.counts)
    talk.turn()
    talk.wish()
    assert talk.turn()


@pytest.mark.parametrize(("ms", "latched"), [(RULES.max_age_ms, ""), (RULES.max_age_ms + 1, "GUARD_CHAIN")])
def test_the_chains_sensors_are_read_again_and_again(ms: float, latched: str) -> None:
    talk = Talk().armed()
    talk.chain()
    for _ in range(8):
        talk.wish()
        talk.pass_ms(ms / 8)
    assert talk.latched == latched
    talk.mind.sensors = None
    talk.pass_ms(1)
    assert talk.latched == "GUARD_CHAIN"


def test_a_layer_does_not_run_on_without_the_chains_sensors() -> None:
    talk = Talk().running()
    for _ in range(9):
        talk.wish(layer=0)
        talk.pass_ms(100)
    assert talk.latched == "GUARD_CHAIN"


def test_beam_before_a_layer_may_run_is_latched() -> None:
    talk = Talk().armed()
    talk.pass_ms(BEAM_FLOOR_NS / MS, beam=True)
    assert talk.latched == ""
    talk.pass_ms(0.1, beam=True)
    assert talk.latched == "GUARD_VISIT"


def test_a_visit_beyond_the_layer_or_backwards_is_latched() -> None:
    talk = Talk().running()
    talk.visit = 12
    assert talk.pass_ms(1, beam=True)
    talk.visit = 13
    talk.pass_ms(1, beam=True)
    assert talk.latched == "GUARD_VISIT"
    talk = Talk().running()
    for talk.visit in (5, 4):
        talk.pass_ms(1, beam=True)
    assert talk.latched == "GUARD_VISIT"


@pytest.mark.parametrize(("after", "latched"), [(5, "GUARD_VISIT"), (4, "GUARD_VISIT"), (6, "")])
def test_a_visit_that_is_given_again_through_none_is_latched(after: int, latched: str) -> None:
    talk = Talk().running()
    for talk.visit in (5, 0):
        assert talk.pass_ms(1, 20, beam=talk.visit > 0)
    talk.visit = after
    assert talk.pass_ms(1, 20, beam=True) is not bool(latched)
    assert talk.latched == latched


def test_the_rest_of_a_visit_is_given_in_another_arming() -> None:
    talk = Talk().running()
    talk.visit = 5
    assert talk.pass_ms(1, 20, beam=True)
    talk.visit = 0
    talk.wish(permit=0)
    talk.pass_ms(1)
    talk.wish()
    talk.wish(layer=0, first_visit=5)
    talk.visit = 5
    assert talk.pass_ms(1, 20, beam=True)
    assert talk.latched == ""


def test_energy_ion_and_port_of_the_chain_are_the_layers() -> None:
    layer = expected_fields(SITE, plan())[0].layers[0]
    good = {"beam_present": True, "energy_mev_u": layer.energy_mev_u, "ion": "12C", "port_deg": 90.0}
    for change, latched in (
        ({}, ""),
        ({"energy_mev_u": layer.energy_mev_u + 0.21}, "GUARD_ENERGY"),
        ({"ion": "1H"}, "GUARD_ION"),
        ({"port_deg": 0.0}, "GUARD_PORT"),
    ):
        talk = Talk().running()
        talk.chain(**{**good, **change})
        talk.pass_ms(1, beam=True)
        assert talk.latched == latched
    talk = Talk().armed()  # asked before the layer was allowed: of another one
    talk.chain(**{**good, "ion": "1H"})
    talk.pass_ms(1)
    talk.wish(layer=0)
    talk.pass_ms(1, beam=True)
    assert talk.latched == ""


def deliver(talk: Talk, counts: float, ms: float = 600.0) -> None:
    """So many counts, evenly, in turns of 10 ms with beam."""
    steps = round(ms / 10)
    given = 0
    for step in range(1, steps + 1):
        talk.chain()
        talk.say(talk.wished)
        talk.pass_ms(10, round(counts * step / steps) - given, beam=True)
        given = round(counts * step / steps)


def test_counts_beyond_the_layers_are_latched_and_the_former_parts_count() -> None:
    for before, counted, latched in ((0.0, 68_000, ""), (0.0, 68_500, "GUARD_COUNTS"), (500.0, 68_000, "GUARD_COUNTS")):
        talk = Talk().agreed()
        talk.remembers(fields={"0": Delivered(counts=before)})
        talk.pass_ms(1)
        talk.wish()
        talk.wish(layer=0)
        deliver(talk, counted)
        assert talk.latched == latched
        assert talk.status.delivered_counts_2 == pytest.approx(before + counted)


def test_beam_time_and_flanks_of_the_former_parts_count() -> None:
    planned_ns = round(1.2e9 * expected_fields(SITE, plan())[0].layers[0].particles / 2e6)
    most_ns = planned_ns + BEAM_FLOOR_NS
    for before, latched in (
        (Delivered(beam_ns=most_ns - 11 * MS), ""),
        (Delivered(beam_ns=most_ns - 9 * MS), "GUARD_BEAM_TIME"),
        (Delivered(beam_ns=most_ns - 9 * MS, flanks=3), ""),
    ):
        talk = Talk().agreed()
        talk.remembers(fields={"0": before})
        talk.pass_ms(1)
        talk.wish()
        talk.wish(layer=0)
        talk.pass_ms(10, beam=True)
        assert talk.latched == latched


def test_the_rate_of_each_turn_is_judged() -> None:
    talk = Talk().running()
    assert talk.pass_ms(10, 1600, beam=True)
    assert talk.pass_ms(10, 1600, beam=True)  # per turn, not since the arming
    talk.pass_ms(10, 1800, beam=True)
    assert talk.latched == "GUARD_RATE"
    written = next(values for name, values in talk.events if name == "latched")
    assert written["value"] == pytest.approx(180_000)
    assert written["limit"] == pytest.approx(2 * 2e6 * 0.041934 + 6000, rel=1e-3)
