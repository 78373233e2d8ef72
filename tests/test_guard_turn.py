"""The guard's turns, with its wires in the test's hands: what leaves, in which order, and what is told."""

from __future__ import annotations

import pytest

from drivers.errors import Refused
from drivers.wires.guard_link import (
    AGREED,
    LATCHED,
    PERMITTING,
    Ask,
    Envelope,
    Reset,
    Session,
    Wish,
)
from drivers.wires.permits import KIND_DROP, KIND_PERMIT, SOURCE_GUARD, Permit
from interlocks.guard import STATUS_NS
from tests.guard_room import Room
from tests.guard_talk import MS, SITE, TOKEN, TREATMENT, plan


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(monkeypatch)


def kinds(sent: list[Permit | Envelope]) -> list[int]:
    return [one.kind for one in sent if isinstance(one, Permit)]


def test_armed_it_sends_a_permit_of_its_own_each_turn(room: Room) -> None:
    room.armed()
    assert [kinds(room.turn()) for _ in range(3)] == [[KIND_PERMIT]] * 3
    (first,) = [one for one in room.turn() if isinstance(one, Permit)]
    assert first == Permit(KIND_PERMIT, SOURCE_GUARD, 7, TOKEN, first.sequence, room.now_ns, 0, 0)
    (second,) = [one for one in room.turn() if isinstance(one, Permit)]
    assert second.sequence > first.sequence


def test_a_permit_says_how_old_the_newest_frame_is(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.armed()
    monkeypatch.setattr(Room, "take_frames", lambda self: None)
    (permit,) = [one for one in room.turn(3.0) if isinstance(one, Permit)]
    assert permit.age_us == 3000


def test_a_frame_that_comes_while_others_are_taken_is_not_of_the_future(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.armed()
    take_frames = Room.take_frames

    def slowly(self: Room) -> None:
        self.now_ns += 3 * MS
        take_frames(self)

    with monkeypatch.context() as context:
        context.setattr(Room, "take_frames", slowly)
        room.turn()
    (permit,) = [one for one in room.turn() if isinstance(one, Permit)]
    assert permit.age_us == 0


def test_it_hears_nobody_without_the_key(room: Room) -> None:
    room.say(Session(bytes.fromhex(plan().sha256), 1, 1, 1, TREATMENT, 2, 4, 1.0), key=bytes(16))
    room.say(Ask(), key=bytes(16))
    room.turn()
    assert room.mind.session == 0


def test_it_answers_who_asks_and_what_changes_and_every_forty_milliseconds(room: Room) -> None:
    room.turn()  # the first word
    assert room.states
    assert not [one for one in room.turn() if isinstance(one, Envelope)]
    room.say(Ask())
    (answer,) = room.turn()
    assert isinstance(answer, Envelope)
    assert answer.session == 0
    room.say(Ask())
    room.say(Wish(0, 0, -1, 0, 0, TOKEN))
    assert len(room.turn()) == 1
    assert STATUS_NS == 40 * MS
    assert not room.turn(39.999)
    (later,) = room.turn(0.001)
    assert isinstance(later, Envelope)
    assert later.sequence > answer.sequence
    room.armed()
    assert room.states == [PERMITTING]


def test_the_condition_is_told_before_the_drop_and_the_drop_is_sent_once(room: Room) -> None:
    room.armed()
    room.flags = 0  # high voltage gone
    room.say(Wish(1, 0, -1, 0, 0, TOKEN))
    told, drop = room.turn()
    assert isinstance(told, Envelope)
    assert told.message.condition == "GUARD_MONITOR"  # type: ignore[union-attr]
    assert isinstance(drop, Permit)
    assert (drop.kind, drop.arm_token) == (KIND_DROP, TOKEN)
    assert kinds(room.turn()) == []
    # after a reset and a new arming it drops again
    room.flags = room.honest.flags
    room.say(Wish(0, 0, -1, 0, 0, TOKEN))
    room.say(Reset("simulated", "high voltage is back"))
    room.turn()
    room.say(Wish(1, 0, -1, 0, 0, TOKEN + 1))
    assert kinds(room.turn()) == [KIND_PERMIT]
    room.flags = 0
    assert kinds(room.turn()) == [KIND_DROP]


def test_a_condition_that_changes_is_told_at_once_even_in_the_same_state(room: Room) -> None:
    room.turn()
    room.say(Session(bytes(32), 1, 1, 1, TREATMENT, 2, 4, 1.0))
    room.turn()
    assert len(room.states) == 1  # still waiting, but refused now


def test_what_is_only_late_is_not_permitted_and_not_dropped(room: Room) -> None:
    room.armed()
    assert kinds(room.turn(150.0)) == []
    assert room.mind.armed is not None
    room.say(Wish(1, 0, -1, 0, 0, TOKEN))
    assert kinds(room.turn()) == [KIND_PERMIT]


def test_latched_without_a_field_it_drops_nothing(room: Room) -> None:
    room.armed()
    room.say(Wish(1, 1, -1, 0, 0, TOKEN))
    assert kinds(room.turn()) == [KIND_DROP]
    room.say(Wish(0, 0, -1, 0, 0, TOKEN))
    assert kinds(room.turn()) == []
    assert room.mind.latched is not None


def test_told_to_end_it_hears_and_says_nothing_more(room: Room) -> None:
    room.armed()
    room.guard.finish()
    room.say(Wish(1, 0, -1, 0, 0, TOKEN))
    room.say(Ask())
    assert room.turn() == []
    assert room.turn(100.0) == []
    assert (room.mind.armed, room.mind.settled) == (None, False)


@pytest.mark.parametrize(("longest_s", "turn_s"), [(1.0, SITE.permits.time_out_ms * 1e-3 / 5), (0.01, 0.01)])
def test_it_turns_five_times_in_the_chains_time_out(
    monkeypatch: pytest.MonkeyPatch, longest_s: float, turn_s: float
) -> None:
    assert Room(monkeypatch, longest_turn_s=longest_s).guard.turn_s == pytest.approx(turn_s)


def test_it_knows_how_often_it_turned_and_how_long_the_longest_turn_was(room: Room) -> None:
    room.turn(5.0)
    assert (room.guard.turns, room.guard.longest_ns) == (1, 0)  # before it there was none
    for ms in (1.0, 7.0, 2.0):
        room.turn(ms)
    assert (room.guard.turns, room.guard.longest_ns) == (4, 7 * MS)


def test_a_site_without_a_guard_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="no \\[guard\\] table"):
        Room(monkeypatch, site=SITE.model_copy(update={"guard": None}))


def test_agreement_is_told(room: Room) -> None:
    room.agree()
    room.turn()
    assert room.states == [AGREED]
    room.say(Wish(1, 9, -1, 0, 0, TOKEN))
    room.turn()
    assert room.states == [LATCHED]
