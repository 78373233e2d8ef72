"""The guard: an independent supervisor with its own links, its own small code and its own permits to the safety chain.

It reads electrometer 2 and the chain's PLC itself, takes the limits from its own reading of the plan, and lets its
permits to the chain cease the moment anything disagrees. It imports nothing of the controller. This file moves the
bytes; what is decided is `interlocks.guard_supervisor`'s. The same class runs in a process
of its own on sockets (`interlocks.guard_process`) and inside a room in virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from drivers.deadline import Deadline
from drivers.dose_monitor import Electrometer
from drivers.errors import DeviceError, Refused
from drivers.open import open_device
from drivers.safety_chain import SafetyChain
from drivers.verify import loop_ns
from drivers.wires.guard_link import Ask, Envelope, Status, decode, encode
from drivers.wires.permits import KIND_DROP, KIND_PERMIT, SOURCE_GUARD, Permit
from drivers.wires.permits import encode as encode_permit
from interlocks.guard_agreement import Air
from interlocks.guard_judge import Sensors
from interlocks.guard_plan import PlannedDelivery, read_plan
from interlocks.guard_state import StateFile
from interlocks.guard_supervisor import Supervisor
from sites.schema import GuardRules, Site

CONNECT_S = 5.0
STATUS_NS = 40_000_000
PERIODS = 5
"""Turns in the chain's time-out: so many permits may be late before it opens."""


class Wires(Protocol):
    """The guard's datagrams, real or in memory."""

    digest: Any
    """`interlocks.guard_digest.WORDS` whole numbers."""

    def take_frames(self) -> None:
        """Put what came of electrometer 2's stream into the digest."""

    def send_permit(self, data: bytes) -> None:
        """To the safety chain."""

    def heard(self) -> Sequence[bytes]:
        """What the controller has sent since the last call."""

    def answer(self, data: bytes) -> None:
        """To the controller that was heard last."""


class Guard:
    """One guard of one room, for one plan."""

    def __init__(
        self,
        site: Site,
        key: bytes,
        plan: Path,
        wires: Wires,
        event: Callable[..., None],
        *,
        fraction_group: int | None = None,
        gantry_deg: float | None = None,
        state: Path | None = None,
        wall_ns: Callable[[], int],
        pid: int = 0,
        longest_turn_s: float = 1.0,
        keep: type[StateFile] = StateFile,
    ) -> None:
        """`event(name, **values)` writes down what happens; `keep` writes the memory.

        Raises `Refused` or `BadInput` for a plan or site.
        """
        if site.guard is None:
            raise Refused(f"site {site.name}: no [guard] table; the guard has no addresses there")
        self.site = site
        self.rules: GuardRules = site.guard
        self.turn_s = min(site.permits.time_out_ms * 1e-3 / PERIODS, longest_turn_s)
        self._key = key
        self._wires = wires
        self._event = event
        self._sequence = 0
        self._dropped = False
        self._told: Status | None = None
        self._told_ns = 0
        self._ending = False
        self._turn_ns = 0
        self.turns = 0
        self.longest_ns = 0
        """Between two turns: `turn_s`, and how late this process is."""
        self._heartbeats: dict[str, int] = {}

        def read() -> PlannedDelivery:
            port = site.gantry.default_deg if gantry_deg is None else gantry_deg
            return read_plan(plan, fraction_group=fraction_group, gantry_deg=port)

        self._state = keep(state)
        self.supervisor = Supervisor(
            site, self.rules, read, self._state, event, wall_ns, pid, self.turn_s, wires.digest
        )
        self._electrometer = self._open("electrometer_2")
        self._chain = self._open("safety_chain")
        assert isinstance(self._electrometer, Electrometer)
        assert isinstance(self._chain, SafetyChain)

    def _open(self, name: str) -> Any:
        device = getattr(self.site.devices, name)
        return open_device(f"guard's {name}", map=device.map, **device.address.model_dump())

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Connect, then supervise until `finish` or cancelled. `ready` is called once. Raises `Refused`."""
        try:
            await self._connect()
            async with asyncio.TaskGroup() as group:
                polls = [
                    group.create_task(self._poll_chain(), name="guard: chain"),
                    group.create_task(self._poll_electrometer(), name="guard: electrometer 2"),
                ]
                ready()
                while not (self._ending and self.supervisor.settled):
                    self.turn()
                    await asyncio.sleep(self.turn_s)
                for poll in polls:
                    poll.cancel()
        finally:
            self.supervisor.close(loop_ns())
            self._state.close()
            await self._electrometer.close()
            await self._chain.close()

    def finish(self) -> None:
        """End in order: permits cease now, the last charge is still counted."""
        self._ending = True
        self.supervisor.finish(loop_ns())

    async def _connect(self) -> None:
        deadline = Deadline.after(CONNECT_S, "the guard's links")
        for name, driver in (("electrometer_2", self._electrometer), ("safety_chain", self._chain)):
            device = getattr(self.site.devices, name)
            try:
                await driver.connect(deadline)
                identity = await driver.identify(deadline)
            except DeviceError as error:
                raise Refused(f"guard: {error}") from error
            got = (identity.device_id, identity.simulated, identity.map_sha256)
            wanted = (device.device_id, device.kind == "simulated", driver.map.map_sha256)
            if got != wanted:
                raise Refused(f"guard: {name} says {got}, the site wanted {wanted} (id, simulated, map)")
            if name == "electrometer_2":
                self.supervisor.account.know_power_up(identity.boot_nonce, identity.simulated)
        try:
            await self._look_at_air(deadline)
            assert self.supervisor.air is not None
            self.supervisor.first_look(self.supervisor.air.counts)
            await self._look_at_chain(deadline)
            await self._electrometer.stream_to(self.rules.frames.host, self.rules.frames.port, 1, deadline)
        except DeviceError as error:
            raise Refused(f"guard: {error}") from error

    async def _look_at_air(self, deadline: Deadline) -> None:
        got = await self._electrometer.status(deadline)
        if self._beats("electrometer_2", got.heartbeat):
            self.supervisor.air = Air(got.t_ns, got.temperature_c, got.pressure_hpa, got.counts)

    async def _look_at_chain(self, deadline: Deadline) -> None:
        got = await self._chain.status(deadline)
        if self._beats("safety_chain", got.heartbeat):
            self.supervisor.sensors = Sensors(
                got.t_ns, got.beam_present, got.energy_sensor_mev_u, got.ion_sensor, got.port_sensor_deg
            )

    def _beats(self, name: str, heartbeat: int) -> bool:
        """An answer with the heartbeat of the one before is no new word: what is known of that device grows old."""
        before = self._heartbeats.get(name)
        self._heartbeats[name] = heartbeat
        return heartbeat != before

    async def _poll_chain(self) -> None:
        await self._poll(self._chain, self._look_at_chain, 1.0 / self.rules.poll_hz)

    async def _poll_electrometer(self) -> None:
        await self._poll(self._electrometer, self._look_at_air, 4.0 / self.rules.poll_hz)

    async def _poll(self, driver: Any, look: Callable[[Deadline], Any], period_s: float) -> None:
        """Look again and again; what cannot be read grows old, and the judgement sees to that."""
        limit_s = self.rules.max_age_ms * 1e-3
        while True:
            await asyncio.sleep(period_s)
            try:
                await look(Deadline.after(limit_s, "the guard's poll"))
            except DeviceError as error:
                self._event("warning", text=str(error))
                await self._reconnect(driver, limit_s)

    async def _reconnect(self, driver: Any, limit_s: float) -> None:
        try:
            await driver.close()
            await driver.connect(Deadline.after(limit_s, "the guard's reconnection"))
        except DeviceError as error:
            self._event("warning", text=str(error))

    def turn(self) -> None:
        """Frames first, then messages: what ran in the frames was allowed by a message before."""
        self._wires.take_frames()
        now_ns = loop_ns()  # after them: before, what came while others were taken would seem to be of the future
        if self.turns > 0:
            self.longest_ns = max(self.longest_ns, now_ns - self._turn_ns)
        self.turns, self._turn_ns = self.turns + 1, now_ns
        supervisor = self.supervisor
        asked = False
        for data in self._wires.heard():
            envelope = None if self._ending else decode(data, self._key)
            if envelope is not None:
                supervisor.hear(envelope, now_ns)
                asked = asked or isinstance(envelope.message, Ask)
        permitted = supervisor.turn(now_ns)
        status = supervisor.status()
        changed = self._told is None or status[0] != self._told[0] or status.condition != self._told.condition
        if (asked or changed or now_ns - self._told_ns >= STATUS_NS) and not self._ending:
            # before the drop: the controller must know why when it sees the chain open
            self._sequence += 1
            self._wires.answer(encode(Envelope(supervisor.session, self._sequence, status), self._key))
            self._told, self._told_ns = status, now_ns
        if permitted:
            self._dropped = False
            self._permit(KIND_PERMIT, now_ns)
        elif supervisor.latched is not None and supervisor.armed is not None and not self._dropped:
            self._dropped = True
            self._permit(KIND_DROP, now_ns)

    def _permit(self, kind: int, now_ns: int) -> None:
        armed = self.supervisor.armed
        assert armed is not None
        self._sequence += 1
        age_us = min(self.supervisor.frame_age_ns(now_ns) // 1000, 0xFFFFFFFF)
        permit = Permit(kind, SOURCE_GUARD, self.supervisor.session, armed.token, self._sequence, now_ns, age_us, 0)
        self._wires.send_permit(encode_permit(permit, self._key))
