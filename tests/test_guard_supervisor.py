"""The guard's mind by itself, message by message: what it hears, arms, permits, latches and lets reset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drivers.flags import FLAG_HV_OK
from drivers.wires.guard_link import AGREED, LATCHED, PERMITTING, WAITING, Ask, Wish
from interlocks.guard_account import SETTLE_NS
from interlocks.guard_state import StateFile
from sites.schema import Operators
from tests.guard_talk import COUNTER, MS, SITE, TOKEN, Talk, stored

STALE_MS = SITE.permits.stale_ms


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
    talk.say(talk.mind.agreement.said, sequence=1000)  # type: ignore[arg-type]
    assert talk.status.state == AGREED
    talk.session()
    assert talk.status.state == WAITING


def test_another_session_while_a_field_is_armed_is_latched_and_not_taken() -> None:
    talk = Talk().armed()
    number = talk.session_number
    talk.session()
    assert (talk.latched, talk.mind.session) == ("GUARD_CONTROLLER", number)
    assert not talk.turn()


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


def test_it_says_how_old_the_newest_frame_is() -> None:
    talk = Talk()
    talk.turn()
    assert talk.mind.frame_age_ns(talk.now_ns) > 3600 * 1000 * MS  # there was none
    talk.pass_ms(1)
    talk.pass_ms(3, silent=True)
    assert talk.mind.frame_age_ns(talk.now_ns) == 3 * MS


def test_without_a_memory_nothing_is_permitted(tmp_path: Path) -> None:
    (tmp_path / "memory.json.new").mkdir()  # where it would be written
    talk = Talk(tmp_path / "memory.json").armed()
    assert talk.latched == "GUARD_DISK"
    assert not talk.turn()
    assert [name for name, _ in talk.events].count("armed") == 0


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


def test_nobody_resets_even_where_a_site_lists_an_empty_name() -> None:
    nameless = SITE.model_copy(update={"operators": Operators.model_construct(names=("anna", ""), physicists=("",))})
    talk = Talk(site=nameless).armed()
    talk.wish(field=1)
    talk.wish(permit=0)
    talk.reset("", "seen")
    assert talk.latched == "GUARD_CONTROLLER"


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


def again(talk: Talk, path: Path) -> Talk:
    """Another guard with the memory of one that ended."""
    another = Talk(path, site=talk.site)
    another.counts, another.session_number = talk.counts, talk.session_number
    return another


def latched_in_mid_field(path: Path) -> Talk:
    talk = Talk(path, site=staffed()).running()
    talk.pass_ms(10, 300, beam=True)
    talk.visit = 13
    talk.pass_ms(10, 300, beam=True)
    assert talk.latched == "GUARD_VISIT"
    return talk


def test_another_guard_with_its_memory_is_latched_until_it_is_reset_by_who_may(tmp_path: Path) -> None:
    talk = latched_in_mid_field(tmp_path / "memory.json")
    talk.wish(permit=0)
    talk.mind.close(talk.now_ns)
    another = again(talk, tmp_path / "memory.json")
    before, now = talk.status, another.status  # its first word
    assert (now.state, now.condition, now.value, now.limit) == (LATCHED, "GUARD_VISIT", before.value, before.limit)
    assert now.detail == "beyond the layer (latched 2023-11-14 22:13:20 UTC)"
    assert [name for name, _ in another.events] == ["still_latched"]
    another.agreed(part=2)
    another.pass_ms(1)
    another.wish()
    assert (another.mind.armed, another.turn()) == (None, False)
    another.reset("anna", "looks fine")
    third = again(another, tmp_path / "memory.json").agreed(part=2)
    assert (another.latched, third.latched) == ("GUARD_VISIT", "GUARD_VISIT")
    assert third.status.detail == now.detail
    third.reset("berta", "found and cured")
    assert (third.latched, again(third, tmp_path / "memory.json").latched) == ("", "")
    third.pass_ms(1)
    third.wish()
    assert third.turn()


def test_a_latch_in_mid_field_changes_nothing_else_of_what_is_remembered(tmp_path: Path) -> None:
    talk = Talk(tmp_path / "memory.json", site=staffed()).armed()
    armed = stored(tmp_path / "memory.json")
    talk.pass_ms(10, 300)
    talk.wish(field=1)
    latched = stored(tmp_path / "memory.json")
    assert armed["latched"] is None
    assert latched.pop("latched") == {
        "id": "GUARD_CONTROLLER", "wall_ns": talk.wall_ns, "value": 1.0, "limit": 0.0, "detail": "another field armed",
    }  # fmt: skip
    assert armed == {**latched, "latched": None}
    another = again(talk, tmp_path / "memory.json")  # it was killed: what came is found in the counter
    another.mind.first_look(talk.counts)
    assert another.memory.fields["0"].counts == pytest.approx(300)


def test_a_latch_or_reset_that_the_disk_does_not_take_is_latched(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    talk = Talk(path, site=staffed()).agreed()
    talk.wish(field=9)
    assert stored(path)["latched"]["id"] == "GUARD_CONTROLLER"
    (tmp_path / "memory.json.new").mkdir()
    talk.reset("anna", "seen")
    assert talk.latched == "GUARD_DISK"
    (tmp_path / "memory.json.new").rmdir()
    talk.reset("anna", "there is room again")
    assert (talk.latched, stored(path)["latched"]) == ("", None)


def test_a_latch_without_numbers_is_remembered_without_them(tmp_path: Path) -> None:
    talk = Talk(tmp_path / "memory.json").armed()
    talk.session()
    another = again(talk, tmp_path / "memory.json")
    assert another.latched == "GUARD_CONTROLLER"
    assert another.status.value != another.status.value
    assert another.status.limit != another.status.limit
    assert stored(tmp_path / "memory.json")["latched"]["value"] is None


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


def test_a_guard_that_is_told_to_end_agrees_on_nothing_more() -> None:
    talk = Talk().agreed()
    talk.mind.finish(talk.now_ns)
    talk.layers()
    talk.pass_ms(1)
    talk.wish()
    assert (talk.status.state, talk.mind.armed) == (WAITING, None)


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


class SlowDisk(StateFile):
    """A memory that is not on the disk yet, or could not be written."""

    saved: bool = False  # type: ignore[assignment]
    failure: OSError | None = None  # type: ignore[assignment]


def test_nothing_is_permitted_until_the_arming_is_on_the_disk() -> None:
    talk = Talk().agreed()
    disk = talk.mind.account._state = SlowDisk(None)
    talk.pass_ms(1)
    talk.wish()
    assert (talk.pass_ms(1), talk.latched, talk.mind.armed is None) == (False, "", False)
    disk.saved = True
    assert talk.pass_ms(1)


def test_a_memory_that_could_not_be_written_is_latched_whenever_that_is_known() -> None:
    talk = Talk().armed()
    disk = talk.mind.account._state = SlowDisk(None)
    disk.saved, disk.failure = True, OSError("disk full")
    assert not talk.pass_ms(1)
    assert talk.latched == "GUARD_DISK"
    assert talk.mind.latched is not None
    assert "disk full" in talk.mind.latched.detail
