"""The guard's mind by itself, message by message: what it permits, what it refuses, what it latches, what it keeps."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivers.errors import BadInput
from drivers.flags import FLAG_HV_OK, FLAG_SATURATED
from drivers.wires.guard_link import AGREED, LATCHED, PERMITTING, WAITING, Ask, Wish
from interlocks import guard_digest as d
from interlocks.guard_judge import BEAM_FLOOR_NS
from interlocks.guard_numbers import expected_fields
from interlocks.guard_state import Delivered, Memory, StateFile
from interlocks.guard_supervisor import SETTLE_NS, Air
from sites.schema import Operators
from tests.guard_talk import COUNTER, MS, RULES, SITE, START_NS, TOKEN, TREATMENT, WALL_NS, Talk, plan, site_with

LEASE_MS, TIME_OUT_MS, STALE_MS = SITE.permits.lease_ms, SITE.permits.time_out_ms, SITE.permits.stale_ms
FRESH_MS = 20.0
"""Two turns of 10 ms; more than the site's age of a frame."""
ACCOUNT = f"{plan().sha256}:1"


def stored(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


# ---- agreement


def test_a_controller_that_means_the_plan_is_agreed_with_and_told_so() -> None:
    talk = Talk()
    assert talk.status.state == WAITING
    talk.agreed()
    assert (talk.refused, talk.latched) == ("", "")
    status = talk.status
    assert (status.state, status.pid, status.plan_sha256.hex(), status.fraction_group) == (AGREED, 77, plan().sha256, 1)
    assert (status.condition, status.detail, status.delivered_counts_2) == ("", "", 0.0)
    assert math.isnan(status.value)


def test_nothing_is_agreed_until_every_layer_was_said() -> None:
    talk = Talk()
    talk.session()
    for field, layer in ((0, 0), (0, 1), (1, 0)):
        talk.say(talk.limits(field, layer))
        assert talk.status.state == WAITING
    talk.say(talk.limits(1, 1))
    assert talk.status.state == AGREED


def test_layers_before_any_session_and_an_ask_are_nothing() -> None:
    talk = Talk()
    talk.layers()
    talk.say(Ask())
    assert talk.status.state == WAITING
    talk.agreed()
    talk.say(Ask(), sequence=1000)  # it has no number of the session
    talk.pass_ms(1)
    talk.wish()
    assert talk.status.state == PERMITTING


@pytest.mark.parametrize(
    ("changes", "condition", "words"),
    [
        ({"plan_sha256": bytes(32)}, "GUARD_PLAN", plan().sha256[:16]),
        ({"fraction_group": 2}, "GUARD_LIMITS", "fraction group"),
        ({"fields": 3}, "GUARD_LIMITS", "fields"),
        ({"layers": 5}, "GUARD_LIMITS", "layers"),
        ({"ktp": 1.0031}, "GUARD_CORRECTIONS", "the controller's"),
        ({"ktp": 0.9969}, "GUARD_CORRECTIONS", "the controller's"),
        ({"ktp": math.nan}, "GUARD_CORRECTIONS", "the controller's"),
        ({"part": 2}, "GUARD_RETAINED", "nothing of the parts before"),
    ],
)
def test_a_session_about_something_else_is_refused_and_never_permitted(
    changes: dict[str, Any], condition: str, words: str
) -> None:
    talk = Talk().agreed(**changes)
    assert talk.refused == talk.status.condition == condition
    assert words in talk.status.detail
    assert ("refused", condition) in [(name, values.get("id")) for name, values in talk.events]
    talk.pass_ms(1)
    talk.wish()
    assert (talk.status.state, talk.turn()) == (WAITING, False)


@pytest.mark.parametrize("ktp", [1.0029, 0.9971])
def test_two_sensors_of_one_room_may_differ_a_little(ktp: float) -> None:
    talk = Talk()
    talk.session(ktp=ktp)
    assert talk.refused == ""


def test_a_plan_that_cannot_be_read_any_more_is_refused_and_another_file_is_another_plan() -> None:
    talk = Talk()
    talk.plan = replace(plan(), sha256="00" * 32, fields=plan().fields[:1])
    talk.session()
    assert talk.refused == "GUARD_PLAN"
    talk.session(plan_sha256=bytes(32), fields=1, layers=2)
    assert talk.refused == ""

    def unreadable() -> Any:
        raise BadInput("gone")

    talk.mind._read = unreadable
    talk.session(plan_sha256=bytes(32), fields=1, layers=2)
    assert (talk.refused, talk.status.detail) == ("GUARD_PLAN", "gone")


def test_another_layer_in_the_place_of_one_is_nothing_said_of_that_one() -> None:
    talk = Talk()
    talk.session()
    for field, layer in ((0, 0), (0, 1), (1, 0)):
        talk.say(talk.limits(field, layer))
    talk.say(talk.limits(1, 1)._replace(layer=7))
    assert talk.refused == "GUARD_LIMITS"
    assert "field 2, layer 2: nothing said" in talk.status.detail


def test_a_layer_that_differs_is_refused_and_stays_refused() -> None:
    talk = Talk()
    talk.session()
    wrong = talk.limits(0, 1)._replace(particles=talk.limits(0, 1).particles * 1.002)
    for said in (talk.limits(0, 0), wrong, talk.limits(1, 0), talk.limits(1, 1)):
        talk.say(said)
    assert (talk.refused, talk.status.state) == ("GUARD_LIMITS", WAITING)
    assert "field 1, layer 2: particles" in talk.status.detail
    talk.say(talk.limits(0, 1))
    assert (talk.refused, talk.status.state) == ("GUARD_LIMITS", WAITING)
    talk.agreed()  # another session does better
    assert (talk.refused, talk.status.state) == ("", AGREED)


def test_the_first_layer_that_differs_is_the_one_that_is_named() -> None:
    talk = Talk()
    talk.session()
    for layer in (1, 0):
        talk.say(talk.limits(0, layer)._replace(particles=1.0))
    talk.say(talk.limits(1, 0))
    talk.say(talk.limits(1, 1))
    assert "field 1, layer 1: particles" in talk.status.detail


def test_what_was_agreed_on_is_not_changed_afterwards() -> None:
    talk = Talk().agreed()
    before = dict(talk.mind._layers)
    talk.say(talk.limits(0, 0)._replace(rate_per_s=8e7, particles=1e9))
    assert talk.mind._layers == before
    assert [name for name, _ in talk.events].count("agreed") == 1


def test_messages_of_another_session_or_out_of_sequence_are_passed_over() -> None:
    talk = Talk().agreed()
    talk.pass_ms(1)
    talk.wish()
    assert talk.status.state == PERMITTING
    number = talk.sequence
    talk.say(wish_none(talk), session=99)
    talk.say(wish_none(talk), sequence=number)
    talk.say(wish_none(talk), sequence=number - 1)
    assert talk.status.state == PERMITTING
    talk.say(wish_none(talk), sequence=number + 1)
    assert talk.status.state == AGREED


def wish_none(talk: Talk) -> Any:
    return Wish(0, 0, -1, 0, 0, TOKEN)


def test_the_same_session_said_again_changes_nothing_and_another_one_begins_anew() -> None:
    talk = Talk().agreed()
    talk.say(talk.mind._said, sequence=1000)  # type: ignore[arg-type]
    assert talk.status.state == AGREED
    talk.session()
    assert talk.status.state == WAITING


def test_another_session_while_a_field_is_armed_is_latched_and_not_taken() -> None:
    talk = Talk().armed()
    number = talk.session_number
    talk.session()
    assert (talk.latched, talk.mind.session) == ("GUARD_CONTROLLER", number)
    assert not talk.turn()


# ---- the room


@pytest.mark.parametrize(
    ("age_ms", "refused"), [(8 * RULES.max_age_ms, ""), (8 * RULES.max_age_ms + 0.001, "GUARD_CORRECTIONS")]
)
def test_the_air_was_read_lately(age_ms: float, refused: str) -> None:
    talk = Talk(air=Air(START_NS - round(age_ms * MS), 20.0, 1013.25, COUNTER))
    talk.session()
    assert talk.refused == refused


def test_without_any_reading_of_the_air_or_with_an_impossible_one_nothing_is_agreed() -> None:
    talk = Talk()
    talk.mind.air = None
    talk.session()
    assert talk.refused == "GUARD_CORRECTIONS"
    talk = Talk(air=Air(START_NS, 9.9, 1013.25, COUNTER))
    talk.session(ktp=0.9655)
    assert (talk.refused, "temperature" in talk.status.detail) == ("GUARD_CORRECTIONS", True)


@pytest.mark.parametrize(("before", "refused"), [(1.0 / 1.0499, ""), (1.0 / 1.0501, "GUARD_CORRECTIONS")])
def test_the_air_does_not_jump_between_two_treatments(before: float, refused: str) -> None:
    talk = Talk()
    talk.mind.memory.ktp = before
    talk.session()
    assert talk.refused == refused
    assert talk.mind.memory.ktp == (before if refused else pytest.approx(1.0))


@pytest.mark.parametrize(
    ("gain", "refused"), [(0.8, ""), (1.25, ""), (0.7999, "GUARD_CORRECTIONS"), (1.2501, "GUARD_CORRECTIONS")]
)
def test_the_gain_of_electrometer_2_is_plausible(gain: float, refused: str) -> None:
    dosimetry = {"secondary": SITE.dosimetry.secondary.model_copy(update={"gain": gain})}
    talk = Talk(site=site_with(dosimetry=dosimetry))
    talk.session()
    assert talk.refused == refused


@pytest.mark.parametrize(("factor", "refused"), [(1.0 / 1.0199, ""), (1.0 / 1.0201, "GUARD_CORRECTIONS")])
def test_the_calibration_does_not_jump_between_two_treatments(factor: float, refused: str) -> None:
    talk = Talk()
    now = talk.mind.reference_counts()
    assert now == pytest.approx(0.0560, rel=0.05)  # of carbon at 150 MeV/u
    talk.mind.memory.counts_per_particle = now * factor
    talk.session()
    assert talk.refused == refused
    assert talk.mind.memory.counts_per_particle == (now * factor if refused else now)


# ---- arming, and what is remembered of it


def test_arming_permits_while_frames_and_the_controller_are_fresh() -> None:
    talk = Talk().armed()
    assert talk.status.state == PERMITTING
    assert talk.turn()
    assert talk.pass_ms(1)
    talk.wish(permit=0)
    assert (talk.status.state, talk.turn()) == (AGREED, False)
    assert not talk.pass_ms(1)


def test_nothing_is_armed_without_agreement() -> None:
    talk = Talk()
    talk.session()
    talk.pass_ms(1)
    talk.wish()
    assert (talk.mind.armed, talk.latched, talk.turn()) == (None, "", False)


@pytest.mark.parametrize(("field", "latched"), [(0, ""), (1, ""), (-1, "GUARD_CONTROLLER"), (2, "GUARD_CONTROLLER")])
def test_only_fields_of_the_plan_are_armed(field: int, latched: str) -> None:
    talk = Talk().agreed()
    talk.pass_ms(1)
    talk.wish(field=field)
    assert (talk.latched, talk.mind.armed is None, talk.turn()) == (latched, bool(latched), not latched)


@pytest.mark.parametrize(("change", "value"), [("field", 1), ("arm_token", TOKEN + 1)])
def test_another_field_or_token_while_one_is_armed_is_latched(change: str, value: int) -> None:
    talk = Talk().armed()
    talk.wish(**{change: value})
    assert talk.latched == "GUARD_CONTROLLER"
    assert not talk.turn()


@pytest.mark.parametrize(("silent_ms", "latched"), [(STALE_MS, ""), (STALE_MS + 0.001, "GUARD_FRAMES")])
def test_a_field_is_armed_with_frames_only(silent_ms: float, latched: str) -> None:
    talk = Talk().agreed()
    talk.pass_ms(1)
    talk.pass_ms(silent_ms, silent=True)
    talk.wish()
    assert talk.latched == latched
    never = Talk().agreed()
    never.wish()
    assert never.latched == "GUARD_FRAMES"


def test_the_counter_stands_still_until_a_field_is_armed() -> None:
    most = round(SITE.tolerances.field_dose_counts)
    for counted, latched in ((most, ""), (-most, ""), (most + 2, "GUARD_RETAINED"), (-most - 2, "GUARD_RETAINED")):
        talk = Talk().agreed()
        talk.pass_ms(1)
        talk.pass_ms(1, counted)
        talk.wish()
        assert talk.latched == latched
    # over a second, a pedestal's thousand counts are none
    talk = Talk().agreed()
    talk.pass_ms(1)
    talk.pass_ms(1000, 1199)
    talk.wish()
    assert talk.latched == ""


def test_what_came_before_the_arming_is_not_the_fields() -> None:
    talk = Talk().agreed()
    talk.visit = 9
    talk.pass_ms(1)
    talk.pass_ms(30, beam=True)
    talk.digest[d.RESTARTS] = 3
    talk.flags = FLAG_HV_OK | FLAG_SATURATED
    talk.now_ns += MS
    talk.t_ns += MS
    d.take_frame(talk.digest, 1, talk.t_ns, 9, talk.flags, talk.counts)  # no turn between
    talk.flags = FLAG_HV_OK
    talk.wish()
    armed = talk.mind.armed
    assert armed is not None
    assert talk.pass_ms(1)
    assert talk.latched == ""
    assert [talk.digest[word] for word in (d.BEAM_NS, d.RESTARTS, d.BACKWARD)] == [0, 0, 0]
    assert (armed.base_counts, armed.token) == (COUNTER, TOKEN)


def test_the_memory_says_which_field_is_open_before_the_first_permit(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    talk = Talk(path).armed(field=1)
    talk.pass_ms(1)
    assert stored(path)["open_field"] == 1
    assert (stored(path)["counter"], stored(path)["counter_wall_ns"]) == (COUNTER, WALL_NS)
    assert [values["field"] for name, values in talk.events if name == "armed"] == [1]


def test_the_memory_says_what_pedestal_there_was(tmp_path: Path) -> None:
    talk = Talk(tmp_path / "memory.json").agreed()
    talk.pass_ms(1)
    talk.pass_ms(1000, 400)
    talk.wish()
    assert stored(tmp_path / "memory.json")["pedestal_per_s"] == pytest.approx(400.0)


def test_without_a_memory_nothing_is_permitted(tmp_path: Path) -> None:
    (tmp_path / "memory.json.new").mkdir()  # where it would be written
    talk = Talk(tmp_path / "memory.json").armed()
    assert talk.latched == "GUARD_DISK"
    assert not talk.turn()
    assert [name for name, _ in talk.events].count("armed") == 0


def test_a_counter_that_was_never_seen_is_not_remembered(tmp_path: Path) -> None:
    talk = Talk(tmp_path / "memory.json")
    talk.mind.close(talk.now_ns)
    talk.mind._remember()
    assert stored(tmp_path / "memory.json")["counter"] is None


# ---- layers


def test_a_layer_may_run_once_it_was_named_and_in_its_order() -> None:
    talk = Talk().running()
    armed = talk.mind.armed
    assert armed is not None
    assert armed.limits is not None
    assert (armed.layer, armed.allowed_ns, armed.limits.first_visit, armed.limits.last_visit) == (0, talk.now_ns, 1, 12)
    assert talk.pass_ms(1)
    talk.wish(layer=0)
    allowed_ns = armed.allowed_ns
    assert armed.allowed_ns < talk.now_ns  # said once more: nothing new
    talk.wish(layer=1)
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


def test_the_limits_are_made_with_the_corrections_and_rates_that_were_agreed_on() -> None:
    talk = Talk().running()
    own = expected_fields(SITE, plan())[0].layers[0]
    assert talk.mind.armed is not None
    limits = talk.mind.armed.limits
    assert limits is not None
    assert limits.counts == pytest.approx(1.01 * own.counts_2 + 200, rel=1e-3)
    assert limits.beam_ns == pytest.approx(1.2e9 * own.particles / 2e6)


# ---- the turn


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
    assert talk.mind._heard(talk.now_ns - round((ms + 1) * MS)) is False  # heard in the future


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


def test_what_electrometer_2_says_of_itself_is_latched_and_only_of_this_turn() -> None:
    talk = Talk().armed()
    talk.flags = 0
    assert not talk.pass_ms(1)
    assert (talk.latched, talk.status.state) == ("GUARD_MONITOR", LATCHED)
    talk.flags = FLAG_HV_OK
    talk.wish(permit=0)
    talk.reset()
    assert talk.latched == ""
    talk.wish()
    assert talk.pass_ms(1)


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
        talk.say(talk.mind._wish)  # type: ignore[arg-type]
        talk.pass_ms(10, round(counts * step / steps) - given, beam=True)
        given = round(counts * step / steps)


def test_counts_beyond_the_layers_are_latched_and_the_former_parts_count() -> None:
    for before, counted, latched in ((0.0, 68_000, ""), (0.0, 68_500, "GUARD_COUNTS"), (500.0, 68_000, "GUARD_COUNTS")):
        talk = Talk().agreed()
        talk.mind.memory.fields["0"] = Delivered(counts=before)
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
        talk.mind.memory.fields["0"] = before
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


@pytest.mark.parametrize(("per_s", "less"), [(400, 40), (-400, -40), (3000, 100), (-3000, -100)])
def test_a_pedestal_is_taken_off_and_bounded(per_s: int, less: int) -> None:
    talk = Talk().agreed()
    talk.pass_ms(1)
    talk.mind._idle_t_ns = None  # what the idle judgement says of it is another test's
    talk.pass_ms(1000, per_s)
    talk.wish()
    armed = talk.mind.armed
    assert armed is not None
    talk.digest[d.FELL] = 0
    talk.pass_ms(100, 500, beam=True)
    dose = talk.mind.dose(armed)
    assert dose.counts == pytest.approx(500 - less, abs=0.5)


def test_a_device_that_was_never_quiet_has_no_pedestal() -> None:
    talk = Talk().agreed()
    talk.pass_ms(1, beam=True)
    talk.wish()
    talk.pass_ms(1, 50, beam=True)
    assert talk.digest[d.QUIET_NS] == 0
    assert talk.status.delivered_counts_2 == 50


# ---- ends


def test_first_out_stays_and_later_findings_do_not_replace_it() -> None:
    talk = Talk().armed()
    talk.wish(field=1)
    talk.flags = 0
    talk.pass_ms(1)
    assert talk.latched == "GUARD_CONTROLLER"
    talk.session()
    assert talk.mind.latched is not None
    assert "another field" in talk.mind.latched.detail
    assert [values["id"] for name, values in talk.events if name == "latched"] == ["GUARD_CONTROLLER"]
    assert talk.status.state == LATCHED


def test_while_latched_nothing_is_armed_or_allowed() -> None:
    talk = Talk().running()
    talk.wish(field=1, layer=1)
    talk.wish(layer=1)
    assert talk.mind.armed is not None
    assert talk.mind.armed.layer == 0
    talk.wish(permit=0)
    talk.wish()
    assert (talk.mind.armed, talk.turn()) == (None, False)
    assert (talk.status.state, talk.status.condition) == (LATCHED, "GUARD_CONTROLLER")


def staffed() -> Any:
    return SITE.model_copy(update={"operators": Operators(names=("anna", "berta"), physicists=("berta",))})


@pytest.mark.parametrize(
    ("operator", "reason", "cleared"),
    [("anna", "seen", True), ("", "seen", False), ("anna", "", False), ("carl", "seen", False)],
)
def test_a_reset_needs_a_named_person_and_a_reason(operator: str, reason: str, cleared: bool) -> None:
    talk = Talk(site=staffed()).armed()
    talk.wish(field=1)
    talk.reset("anna", "while it is armed")
    assert talk.latched == "GUARD_CONTROLLER"
    talk.wish(permit=0)
    talk.reset(operator, reason)
    assert (talk.latched == "") is cleared


def test_what_is_reserved_to_a_physicist_an_operator_does_not_reset() -> None:
    talk = Talk(site=staffed()).running()
    talk.visit = 13
    talk.pass_ms(1, beam=True)
    talk.wish(permit=0)
    talk.reset("anna", "looks fine")
    assert talk.latched == "GUARD_VISIT"
    talk.reset("berta", "found and cured")
    assert talk.latched == ""
    talk.reset("berta", "nothing is latched")
    assert [name for name, _ in talk.events].count("reset") == 1


def test_charge_may_come_for_half_a_second_after_a_field() -> None:
    assert SETTLE_NS == 500 * MS


def test_a_field_is_closed_once_no_charge_can_come_any_more(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    talk = Talk(path).running()
    talk.pass_ms(10, 1000, beam=True)
    talk.wish(permit=0)
    talk.pass_ms(1, 40)  # the chamber's last
    assert not talk.mind.settled
    assert talk.mind.memory.open_field == 0
    talk.pass_ms(SETTLE_NS / MS - 1 - 0.001)
    assert not talk.mind.settled
    talk.pass_ms(0.001)
    assert talk.mind.settled
    kept = stored(path)
    assert kept["open_field"] is None
    assert kept["counter"] == COUNTER + 1040
    assert kept["fields"]["0"]["counts"] == pytest.approx(1040, abs=50)  # but for a pedestal of the last ms
    assert (kept["fields"]["0"]["beam_ns"], kept["fields"]["0"]["flanks"]) == (10 * MS, 1)
    closed = [values for name, values in talk.events if name == "closed"]
    assert len(closed) == 1
    talk.pass_ms(1000)
    assert len([1 for name, _ in talk.events if name == "closed"]) == 1


def test_what_came_while_a_field_was_open_is_no_idle_count() -> None:
    talk = Talk().running()
    talk.pass_ms(10, 1600, beam=True)
    talk.wish(permit=0)
    talk.pass_ms(SETTLE_NS / MS)
    talk.wish(field=1)
    assert talk.latched == ""


def test_arming_or_a_session_soon_after_a_field_closes_it_first() -> None:
    talk = Talk().running()
    talk.pass_ms(10, 1600, beam=True)
    talk.wish(permit=0)
    talk.pass_ms(1)
    talk.wish(field=1)
    assert talk.latched == ""
    assert talk.mind.memory.fields["0"].beam_ns == 10 * MS
    talk.wish(permit=0)
    assert not talk.mind.settled
    talk.session(part=2)
    assert talk.mind.settled
    assert (talk.refused, talk.mind.memory.part) == ("", 2)


def test_the_first_part_of_an_account_forgets_the_fields_and_a_later_one_keeps_them() -> None:
    talk = Talk()
    talk.mind.memory.account, talk.mind.memory.fields = ACCOUNT, {"0": Delivered(5.0)}
    talk.session(part=3)
    assert (talk.refused, talk.mind.memory.part, talk.mind.memory.fields) == ("", 3, {"0": Delivered(5.0)})
    talk.session(part=1)
    assert (talk.mind.memory.account, talk.mind.memory.part, talk.mind.memory.fields) == (ACCOUNT, 1, {})


def test_a_guard_that_is_told_to_end_permits_nothing_more_and_says_when_it_knows_what_came() -> None:
    talk = Talk().running()
    assert not talk.mind.settled
    talk.mind.finish(talk.now_ns)
    assert not talk.turn()
    talk.wish(layer=0)
    assert talk.mind.armed is None
    assert not talk.mind.settled
    talk.pass_ms(SETTLE_NS / MS)
    assert talk.mind.settled


def test_closing_writes_down_what_came_but_leaves_an_armed_field_open(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    talk = Talk(path).running()
    talk.pass_ms(10, 1600, beam=True)
    talk.mind.close(talk.now_ns)
    assert stored(path)["open_field"] == 0
    assert stored(path)["counter"] == COUNTER
    talk.wish(permit=0)
    talk.mind.close(talk.now_ns)
    assert stored(path)["open_field"] is None
    assert stored(path)["fields"]["0"]["counts"] == pytest.approx(1600, abs=1)


# ---- what a guard finds when it starts


def with_memory(path: Path, **values: Any) -> Talk:
    """A guard that begins with this memory, five seconds after it was written."""
    memory = Memory(counter=COUNTER, counter_wall_ns=WALL_NS - 5_000_000_000, account=ACCOUNT, part=1, fields={})
    StateFile(path).save(replace(memory, **values))
    return Talk(path)


@pytest.mark.parametrize(
    ("counted", "refused"), [(5199, ""), (-5199, ""), (5202, "GUARD_RETAINED"), (-5202, "GUARD_RETAINED")]
)
def test_the_counter_moved_by_no_more_than_a_pedestal_while_there_was_no_guard(
    tmp_path: Path, counted: int, refused: str
) -> None:
    talk = with_memory(tmp_path / "m.json")
    talk.mind.first_look(COUNTER + counted)
    for _ in range(2):  # another session does no better
        talk.session()
        assert talk.refused == refused
    talk = with_memory(tmp_path / "m.json", counter=None)
    talk.mind.first_look(COUNTER + counted)
    talk.session()
    assert talk.refused == ""


def test_what_came_of_a_field_that_was_left_open_is_the_fields(tmp_path: Path) -> None:
    whole = sum(layer.counts_2 for layer in expected_fields(SITE, plan())[0].layers)
    most = math.floor(2 * whole / SITE.dosimetry.ktp_min + SITE.tolerances.field_dose_counts)
    for counted, refused in ((0, ""), (most, ""), (-1, "GUARD_RETAINED"), (most + 1, "GUARD_RETAINED")):
        talk = with_memory(tmp_path / "m.json", open_field=0, fields={"0": Delivered(100.0)})
        talk.mind.first_look(COUNTER + counted)
        talk.session(part=2)
        assert talk.refused == refused
        assert talk.mind.memory.fields["0"].counts == (100.0 if refused else 100.0 + counted)
        assert talk.mind.memory.open_field == (0 if refused else None)
    talk = with_memory(tmp_path / "m.json", open_field=7)  # no field of this plan
    talk.mind.first_look(COUNTER + 201)
    talk.session()
    assert talk.refused == "GUARD_RETAINED"
    talk = with_memory(tmp_path / "m.json", open_field=2)
    talk.mind.first_look(COUNTER + 201)
    talk.session()
    assert talk.refused == "GUARD_RETAINED"


@pytest.mark.parametrize(
    ("per_s", "written_ago_s", "counted", "fields_own"),
    [
        (100.0, 5, 1500, 1000.0),
        (100.0, 5, 300, 0.0),  # less than the pedestal: none
        (100.0, -5, 1000, 1000.0),  # a clock that was put back
        (-100.0, 5, 1000, 1000.0),
    ],
)
def test_what_came_of_a_field_that_was_left_open_is_less_the_pedestal_of_that_time(
    tmp_path: Path, per_s: float, written_ago_s: int, counted: int, fields_own: float
) -> None:
    wall_ns = WALL_NS - written_ago_s * 1000 * MS
    talk = with_memory(tmp_path / "m.json", open_field=0, pedestal_per_s=per_s, counter_wall_ns=wall_ns)
    talk.mind.first_look(COUNTER + counted)
    assert talk.mind.memory.fields["0"].counts == fields_own


def test_the_pedestal_of_a_field_that_was_left_open_may_come_on_top_of_its_most(tmp_path: Path) -> None:
    whole = sum(layer.counts_2 for layer in expected_fields(SITE, plan())[0].layers)
    most = math.floor(2 * whole / SITE.dosimetry.ktp_min + SITE.tolerances.field_dose_counts + 500.0)
    for counted, refused in ((most, ""), (most + 1, "GUARD_RETAINED")):
        talk = with_memory(tmp_path / "m.json", open_field=0, pedestal_per_s=100.0)
        talk.mind.first_look(COUNTER + counted)
        talk.session(part=2)
        assert talk.refused == refused


def test_a_simulator_that_was_started_anew_has_another_counter(tmp_path: Path) -> None:
    talk = with_memory(tmp_path / "m.json", open_field=0)
    talk.mind.simulator_anew = True
    talk.mind.first_look(12)
    talk.session()
    assert (talk.refused, talk.mind.memory.open_field) == ("", None)
    assert "counter_forgotten" in [name for name, _ in talk.events]
    talk = with_memory(tmp_path / "m.json", open_field=0)
    talk.mind.simulator_anew = True
    talk.mind.first_look(COUNTER + 12)  # as it was left: what came is the field's
    assert talk.mind.memory.fields["0"].counts == 12


@pytest.mark.parametrize(
    ("simulated", "changes", "given", "refused"),
    [
        (True, {}, 5000.0, True),
        (True, {}, 100.0, False),  # the pedestal of its self-tests
        (True, {"treatment": 5}, 5000.0, False),
        (False, {"treatment": 5}, 5000.0, True),
        (False, {"treatment": 5}, 100.0, False),
        (False, {"treatment": 5, "fraction": 2}, 5000.0, False),
        (True, {"treatment": 5, "part": 2}, 5000.0, True),
        (True, {"part": 2}, 5000.0, False),
    ],
)
def test_what_was_given_counts_until_treatment_and_fraction_are_others(
    simulated: bool, changes: dict[str, int], given: float, refused: bool
) -> None:
    site = SITE
    if not simulated:
        real = SITE.devices.couch.model_copy(update={"kind": "real"})
        site = site_with(devices={"couch": real})
    talk = Talk(site=site)
    memory = talk.mind.memory
    memory.account, memory.part, memory.fields = ACCOUNT, 1, {"0": Delivered(given)}
    memory.treatment, memory.fraction = TREATMENT, 1
    talk.session(**changes)
    assert talk.refused == ("GUARD_RETAINED" if refused else "")
    assert (memory.fields == {"0": Delivered(given)}) == (refused or changes.get("part") == 2)


class SlowDisk(StateFile):
    """A memory that is not on the disk yet, or could not be written."""

    saved: bool = False  # type: ignore[assignment]
    failure: OSError | None = None  # type: ignore[assignment]


def test_nothing_is_permitted_until_the_arming_is_on_the_disk() -> None:
    talk = Talk().agreed()
    disk = talk.mind._state = SlowDisk(None)
    talk.pass_ms(1)
    talk.wish()
    assert (talk.pass_ms(1), talk.latched, talk.mind.armed is None) == (False, "", False)
    disk.saved = True
    assert talk.pass_ms(1)


def test_a_memory_that_could_not_be_written_is_latched_whenever_that_is_known() -> None:
    talk = Talk().armed()
    disk = talk.mind._state = SlowDisk(None)
    disk.saved, disk.failure = True, OSError("disk full")
    assert not talk.pass_ms(1)
    assert talk.latched == "GUARD_DISK"
    assert talk.mind.latched is not None
    assert "disk full" in talk.mind.latched.detail


@pytest.mark.parametrize(("given", "refused"), [(200.0, ""), (201.0, "GUARD_RETAINED")])
def test_what_noise_gave_of_a_field_is_no_treatment(given: float, refused: str) -> None:
    talk = Talk()
    talk.session()
    talk.mind.memory.fields["0"] = Delivered(given)
    talk.session()
    assert talk.refused == refused
