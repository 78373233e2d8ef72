"""What a field has got, over parts and over guards that were killed, by the retained counter."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivers.flags import FLAG_HV_OK, FLAG_SATURATED
from interlocks import guard_digest as d
from interlocks.guard_account import SETTLE_NS
from interlocks.guard_numbers import expected_fields
from interlocks.guard_state import Delivered, Memory, StateFile
from tests.guard_talk import ACCOUNT, COUNTER, MS, SITE, TOKEN, TREATMENT, WALL_NS, Talk, plan, site_with, stored


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
    assert [talk.digest[word] for word in (d.BEAM_NS, d.RESTARTS, d.AGAIN)] == [0, 0, 0]
    assert talk.mind.account.opened is not None
    assert (talk.mind.account.opened.base_counts, armed.token) == (COUNTER, TOKEN)


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


def test_a_counter_that_was_never_seen_is_not_remembered(tmp_path: Path) -> None:
    talk = Talk(tmp_path / "memory.json")
    talk.mind.close(talk.now_ns)
    talk.mind._remember()
    assert stored(tmp_path / "memory.json")["counter"] is None


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


@pytest.mark.parametrize(("per_s", "less"), [(400, 40), (-400, -40), (3000, 100), (-3000, -100)])
def test_a_pedestal_is_taken_off_and_bounded(per_s: int, less: int) -> None:
    talk = Talk().agreed()
    talk.pass_ms(1)
    talk.mind.account.idle = None  # what the idle judgement says of it is another test's
    talk.pass_ms(1000, per_s)
    talk.wish()
    armed = talk.mind.armed
    assert armed is not None
    talk.digest[d.FELL] = 0
    talk.pass_ms(100, 500, beam=True)
    dose = talk.mind.account.dose()
    assert dose.counts == pytest.approx(500 - less, abs=0.5)


def test_a_device_that_was_never_quiet_has_no_pedestal() -> None:
    talk = Talk().agreed()
    talk.pass_ms(1, beam=True)
    talk.wish()
    talk.pass_ms(1, 50, beam=True)
    assert talk.digest[d.QUIET_NS] == 0
    assert talk.status.delivered_counts_2 == 50


def test_charge_may_come_for_half_a_second_after_a_field() -> None:
    assert SETTLE_NS == 500 * MS


def test_a_field_is_closed_once_no_charge_can_come_any_more(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    talk = Talk(path).running()
    talk.pass_ms(10, 1000, beam=True)
    talk.wish(permit=0)
    talk.pass_ms(1, 40)  # the chamber's last
    assert not talk.mind.settled
    assert talk.memory.open_field == 0
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


def test_a_field_that_is_still_armed_is_never_closed_however_often_its_end_is_looked_for() -> None:
    talk = Talk().running()
    assert talk.mind.account.settle(talk.now_ns + 10 * SETTLE_NS, at_once=True) is None
    assert talk.memory.open_field == 0


def test_an_end_that_is_said_again_does_not_put_off_the_closing() -> None:
    talk = Talk().running()
    talk.wish(permit=0)
    for _ in range(2):
        assert not talk.mind.settled
        talk.pass_ms(SETTLE_NS / MS / 2)
        talk.wish(permit=0)
    assert talk.mind.settled


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
    assert talk.memory.fields["0"].beam_ns == 10 * MS
    talk.wish(permit=0)
    assert not talk.mind.settled
    talk.session(part=2)
    assert talk.mind.settled
    assert (talk.refused, talk.memory.part) == ("", 2)


def test_the_first_part_of_an_account_forgets_the_fields_and_a_later_one_keeps_them() -> None:
    talk = Talk()
    talk.remembers(account=ACCOUNT, fields={"0": Delivered(5.0)})
    talk.session(part=3)
    assert (talk.refused, talk.memory.part, talk.memory.fields) == ("", 3, {"0": Delivered(5.0)})
    talk.session(part=1)
    assert (talk.memory.account, talk.memory.part, talk.memory.fields) == (ACCOUNT, 1, {})


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
    talk.remembers(account=ACCOUNT, part=1, fields={"0": Delivered(given)}, treatment=TREATMENT, fraction=1)
    talk.session(**changes)
    assert talk.refused == ("GUARD_RETAINED" if refused else "")
    assert (talk.memory.fields == {"0": Delivered(given)}) == (refused or changes.get("part") == 2)


@pytest.mark.parametrize(("given", "refused"), [(200.0, ""), (201.0, "GUARD_RETAINED")])
def test_what_noise_gave_of_a_field_is_no_treatment(given: float, refused: str) -> None:
    talk = Talk()
    talk.session()
    talk.remembers(fields={"0": Delivered(given)})
    talk.session()
    assert talk.refused == refused


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
        assert talk.memory.fields["0"].counts == (100.0 if refused else 100.0 + counted)
        assert talk.memory.open_field == (0 if refused else None)
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
    assert talk.memory.fields["0"].counts == fields_own


def test_the_pedestal_of_a_field_that_was_left_open_may_come_on_top_of_its_most(tmp_path: Path) -> None:
    whole = sum(layer.counts_2 for layer in expected_fields(SITE, plan())[0].layers)
    most = math.floor(2 * whole / SITE.dosimetry.ktp_min + SITE.tolerances.field_dose_counts + 500.0)
    for counted, refused in ((most, ""), (most + 1, "GUARD_RETAINED")):
        talk = with_memory(tmp_path / "m.json", open_field=0, pedestal_per_s=100.0)
        talk.mind.first_look(COUNTER + counted)
        talk.session(part=2)
        assert talk.refused == refused


@pytest.mark.parametrize(
    ("simulated", "counter", "before", "anew"),
    [(True, 5, 9, True), (False, 5, 9, False), (True, None, 9, False), (True, 5, 3, False)],
)
def test_only_a_simulator_that_is_known_may_have_been_started_anew(
    simulated: bool, counter: int | None, before: int, anew: bool
) -> None:
    talk = Talk()
    talk.remembers(counter=counter, boot_nonce=before)
    account = talk.mind.account
    account.know_power_up(3, simulated)
    assert (account.simulator_anew, account.memory.boot_nonce) == (anew, 3)


def test_a_simulator_that_was_started_anew_has_another_counter(tmp_path: Path) -> None:
    talk = with_memory(tmp_path / "m.json", open_field=0)
    talk.mind.account.simulator_anew = True
    talk.mind.first_look(12)
    talk.session()
    assert (talk.refused, talk.memory.open_field) == ("", None)
    assert "counter_forgotten" in [name for name, _ in talk.events]
    talk = with_memory(tmp_path / "m.json", open_field=0)
    talk.mind.account.simulator_anew = True
    talk.mind.first_look(COUNTER + 12)  # as it was left: what came is the field's
    assert talk.memory.fields["0"].counts == 12
