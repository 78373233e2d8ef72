"""The guard's own links and its end: whom it connects to, what it asks, what it does where nobody answers."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers.contracts import Identity
from drivers.errors import DeviceError, Refused
from drivers.wires.guard_link import (
    Session,
    Wish,
)
from drivers.wires.virtual_loop import run_virtual
from interlocks import guard as guard_module
from interlocks.guard_account import SETTLE_NS
from interlocks.guard_agreement import Air
from tests.guard_room import Kept, Room
from tests.guard_talk import COUNTER, MS, RULES, SITE, TOKEN, TREATMENT, WALL_NS, plan


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(monkeypatch)


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
    room = Room(monkeypatch, state=path, keep=Kept)
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
    assert isinstance(guard._state, Kept)
    assert guard._state.done == ["save", "save", "close"]  # armed, closed; the disk has both when it is gone
    assert SETTLE_NS > 0
