"""The guard's turns, links and end, with its wires in the test's hands: what leaves, in which order, what is asked."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers.contracts import Identity
from drivers.errors import DeviceError, Refused
from drivers.wires import permits
from drivers.wires.guard_link import (
    AGREED,
    LATCHED,
    PERMITTING,
    Ask,
    Envelope,
    Message,
    Reset,
    Session,
    Wish,
    decode,
    encode,
)
from drivers.wires.permits import KIND_DROP, KIND_PERMIT, SOURCE_GUARD, Permit
from drivers.wires.virtual_loop import run_virtual
from interlocks import guard as guard_module
from interlocks import guard_digest as d
from interlocks.guard import STATUS_NS, Guard
from interlocks.guard_account import SETTLE_NS
from interlocks.guard_agreement import Air
from tests.delivery_rig import EXAMPLES
from tests.guard_talk import COUNTER, MS, RULES, SITE, START_NS, TOKEN, TREATMENT, WALL_NS, Talk, plan

KEY = bytes(range(16))


class Room:
    """A guard whose wires are lists. `sent`: permits and answers, in the order in which they left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.now_ns = START_NS
        self.digest = [0] * d.WORDS
        self.inbox: list[bytes] = []
        self.sent: list[Permit | Envelope] = []
        self.events: list[str] = []
        self.took = 0
        self.counts = COUNTER
        self.flags = Talk().flags
        monkeypatch.setattr(guard_module, "loop_ns", lambda: self.now_ns)
        said = {"wall_ns": lambda: WALL_NS, **options}
        site = said.pop("site", SITE)
        plan_file = EXAMPLES / "small_carbon.dcm"
        self.guard = Guard(site, KEY, plan_file, self, lambda name, **_: self.events.append(name), **said)
        self.mind = self.guard.supervisor
        self.mind.air = Air(self.now_ns, 20.0, 1013.25, COUNTER)
        self.honest = Talk()
        self.session, self.number = 7, 0

    def remembers(self, **values: Any) -> None:
        self.mind.account.memory = dataclasses.replace(self.mind.account.memory, **values)

    # the wires

    def take_frames(self) -> None:
        self.took += 1
        d.take_frame(self.digest, 1, self.now_ns, 0, self.flags, self.counts)

    def send_permit(self, data: bytes) -> None:
        permit = permits.decode(data)
        assert permit is not None
        assert data == permits.encode(permit, KEY)
        self.sent.append(permit)

    def heard(self) -> list[bytes]:
        came, self.inbox = self.inbox, []
        return came

    def answer(self, data: bytes) -> None:
        envelope = decode(data, KEY)
        assert envelope is not None
        self.sent.append(envelope)

    # the rest of the room

    def say(self, message: Message, key: bytes = KEY) -> None:
        self.number += 1
        self.inbox.append(encode(Envelope(self.session, self.number, message), key))

    def turn(self, ms: float = 1.0) -> list[Permit | Envelope]:
        """What left in a turn."""
        self.now_ns += round(ms * MS)
        assert self.mind.air is not None
        self.honest.now_ns = self.now_ns
        self.honest.chain()
        self.mind.sensors = self.honest.mind.sensors
        self.sent = []
        self.guard.turn()
        return self.sent

    def agree(self) -> None:
        self.say(Session(bytes.fromhex(plan().sha256), 1, 1, 1, TREATMENT, 2, 4, 1.0))
        for field in (0, 1):
            for layer in (0, 1):
                self.say(self.honest.limits(field, layer))

    def armed_by_messages(self) -> None:
        self.agree()
        self.say(Wish(1, 0, -1, 0, 0, TOKEN))

    def armed(self) -> Room:
        self.agree()
        self.turn()
        self.say(Wish(1, 0, -1, 0, 0, TOKEN))
        self.turn()
        return self

    @property
    def states(self) -> list[int]:
        return [one.message.state for one in self.sent if isinstance(one, Envelope)]  # type: ignore[union-attr]


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


def test_a_site_without_a_guard_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="no \\[guard\\] table"):
        Room(monkeypatch, site=SITE.model_copy(update={"guard": None}))


@pytest.mark.parametrize(
    ("simulated", "counter", "before", "anew"),
    [(True, 5, 9, True), (False, 5, 9, False), (True, None, 9, False), (True, 5, 3, False)],
)
def test_only_a_simulator_that_is_known_may_have_been_started_anew(
    room: Room, simulated: bool, counter: int | None, before: int, anew: bool
) -> None:
    room.remembers(counter=counter, boot_nonce=before)
    account = room.mind.account
    account.know_power_up(3, simulated)
    assert (account.simulator_anew, account.memory.boot_nonce) == (anew, 3)


# ---- its own links


class Link:
    """A driver that answers what it is told to, and notes what is asked."""

    def __init__(self, name: str, register_map: Any, now_ns: Callable[[], int]) -> None:
        device = getattr(SITE.devices, name)
        self.map = register_map
        self.identity = Identity(device.device_id, True, register_map.map_sha256, 3)
        self.asked: list[str] = []
        self.fails: set[str] = set()
        self.now_ns = now_ns
        self.counts = COUNTER

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.fails:
            raise DeviceError("it", what)

    async def connect(self, deadline: Any) -> None:
        self.patience_s = deadline.remaining_s()
        self._ask("connect")

    async def close(self) -> None:
        self._ask("close")

    async def identify(self, deadline: Any) -> Identity:
        self._ask("identify")
        return self.identity

    async def stream_to(self, host: str, port: int, slot: int, deadline: Any) -> None:
        self._ask(f"stream to {host}:{port} in slot {slot}")

    async def status(self, deadline: Any) -> Any:
        self._ask("status")
        self.heartbeat += self.alive
        return self

    heartbeat, alive = 0, True

    # of both kinds of status
    temperature_c, pressure_hpa = 20.0, 1013.25
    beam_present, energy_sensor_mev_u, ion_sensor, port_sensor_deg = True, 250.0, "12C", 90.0

    @property
    def t_ns(self) -> int:
        return self.now_ns()


@pytest.fixture
def linked(room: Room) -> Room:
    guard = room.guard
    for attribute, name in (("_electrometer", "electrometer_2"), ("_chain", "safety_chain")):
        link = Link(name, getattr(guard, attribute).map, lambda: room.now_ns)
        setattr(guard, attribute, link)
    return room


def links(room: Room) -> tuple[Any, Any]:
    return room.guard._electrometer, room.guard._chain


STREAM = f"stream to {RULES.frames.host}:{RULES.frames.port} in slot 1"


def test_it_connects_knows_who_answers_and_looks_before_it_is_ready(linked: Room) -> None:
    linked.mind.air = None
    linked.remembers(counter=5, counter_wall_ns=WALL_NS, boot_nonce=3)  # far from what is read now
    run_virtual(linked.guard._connect())
    electrometer, chain = links(linked)
    assert electrometer.asked == ["connect", "identify", "status", STREAM]
    assert chain.asked == ["connect", "identify", "status"]
    air, sensors = linked.mind.air, linked.mind.sensors
    assert air == Air(linked.now_ns, 20.0, 1013.25, COUNTER)
    assert sensors is not None
    assert (sensors.beam_present, sensors.energy_mev_u, sensors.ion, sensors.port_deg) == (True, 250.0, "12C", 90.0)
    assert electrometer.patience_s == 5.0
    linked.say(Session(bytes.fromhex(plan().sha256), 1, 1, 1, TREATMENT, 2, 4, 1.0))
    linked.turn()
    assert linked.mind.agreement.refused is not None
    assert linked.mind.agreement.refused.id == "GUARD_RETAINED"


def test_it_remembers_which_power_up_the_counter_is_of(linked: Room) -> None:
    linked.remembers(boot_nonce=9)
    run_virtual(linked.guard._connect())
    assert linked.mind.account.memory.boot_nonce == 3


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize(
    "change", [{"device_id": "another"}, {"simulated": False}, {"map_sha256": "0" * 16}], ids=lambda c: next(iter(c))
)
def test_it_refuses_a_device_that_is_not_the_sites(linked: Room, device: int, change: dict[str, Any]) -> None:
    link = links(linked)[device]
    link.identity = dataclasses.replace(link.identity, **change)
    with pytest.raises(Refused, match="the site wanted"):
        run_virtual(linked.guard._connect())


@pytest.mark.parametrize(
    ("device", "what"), [(0, "connect"), (1, "connect"), (0, "identify"), (0, "status"), (1, "status"), (0, STREAM)]
)
def test_it_refuses_to_start_where_a_device_does_not_answer(linked: Room, device: int, what: str) -> None:
    links(linked)[device].fails = {what}
    with pytest.raises(Refused, match="guard: it:"):
        run_virtual(linked.guard._connect())


def test_it_looks_again_and_again_and_reconnects_what_fails(linked: Room) -> None:
    electrometer, chain = links(linked)

    async def some_time() -> None:
        async with asyncio.TaskGroup() as group:
            polls = [
                group.create_task(linked.guard._poll_chain()),
                group.create_task(linked.guard._poll_electrometer()),
            ]
            await asyncio.sleep(4.2 / RULES.poll_hz)
            chain.fails = {"status", "connect"}
            await asyncio.sleep(2.0 / RULES.poll_hz)
            chain.fails = set()
            await asyncio.sleep(2.0 / RULES.poll_hz)
            for poll in polls:
                poll.cancel()

    run_virtual(some_time())
    assert chain.asked == [
        *("status" for _ in range(4)),
        *("status", "close", "connect"),
        *("status", "close", "connect"),
        *("status", "status"),
    ]
    assert electrometer.asked == ["status", "status"]
    assert linked.events == ["warning"] * 4


def test_an_answer_of_a_hung_device_is_no_new_word(linked: Room) -> None:
    async def look() -> None:
        await linked.guard._look_at_air(None)  # type: ignore[arg-type]
        await linked.guard._look_at_chain(None)  # type: ignore[arg-type]

    for alive, ms, age_ms in ((True, 0, 0), (True, 5, 0), (False, 7, 7), (True, 3, 0)):
        for link in links(linked):
            link.alive = alive
        linked.now_ns += ms * MS
        run_virtual(look())
        air, sensors = linked.mind.air, linked.mind.sensors
        assert air is not None
        assert sensors is not None
        assert (air.asked_ns, sensors.asked_ns) == (linked.now_ns - age_ms * MS,) * 2


def test_it_runs_until_told_to_end_and_what_came_is_known(linked: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def now_ns() -> int:
        linked.now_ns = round(asyncio.get_running_loop().time() * 1e9)
        return linked.now_ns

    monkeypatch.setattr(guard_module, "loop_ns", now_ns)

    async def room() -> None:
        ready: list[bool] = []
        now_ns()
        linked.mind.air = None
        async with asyncio.TaskGroup() as group:
            task = group.create_task(linked.guard.run(lambda: ready.append(True)))
            await asyncio.sleep(1.0)
            assert ready == [True]
            linked.armed_by_messages()
            await asyncio.sleep(3 * linked.guard.turn_s)
            assert linked.mind.armed is not None
            linked.guard.finish()
            assert linked.mind.armed is None
            await asyncio.sleep(0.9 * SETTLE_NS * 1e-9)
            assert not task.done()
            await asyncio.sleep(0.1 * SETTLE_NS * 1e-9 + 3 * linked.guard.turn_s)
            assert task.done()

    run_virtual(room())
    electrometer, chain = links(linked)
    assert electrometer.asked[-1] == chain.asked[-1] == "close"
    assert linked.took >= 1.0 / linked.guard.turn_s


def test_it_closes_its_links_also_where_it_could_not_start(linked: Room) -> None:
    electrometer, chain = links(linked)
    chain.fails = {"identify"}
    with pytest.raises(Refused):
        run_virtual(linked.guard.run())
    assert electrometer.asked[-1] == chain.asked[-1] == "close"
    assert not linked.took


def test_at_its_end_it_writes_down_what_came(linked: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memory.json"
    room = Room(monkeypatch, state=path)
    room.armed()
    room.say(Wish(0, 0, -1, 0, 0, TOKEN))
    room.turn()
    path.unlink()
    guard = room.guard
    guard._electrometer, guard._chain = links(linked)
    links(linked)[0].fails = {"connect"}
    with pytest.raises(Refused):
        run_virtual(guard.run())
    assert path.exists()
    assert room.mind.settled
    assert SETTLE_NS > 0


def test_agreement_is_told(room: Room) -> None:
    room.agree()
    room.turn()
    assert room.states == [AGREED]
    room.say(Wish(1, 9, -1, 0, 0, TOKEN))
    room.turn()
    assert room.states == [LATCHED]
