"""The controller's end of the link to the guard: what it means to deliver, what may run now, and what the guard says.

The guard is never asked for permission here; it gives its own permits to the chain or does not. What it says of why is
latched under its name, so that a chain that opened for the guard's sake is not left without a cause.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from controller.delivery.roles import demand_reset_role
from controller.machine.program import LayerProgram
from drivers.deadline import Deadline
from drivers.errors import Refused
from drivers.wires.guard_link import (
    AGREED,
    LATCHED,
    Ask,
    Envelope,
    LayerLimits,
    Message,
    Reset,
    Session,
    Status,
    Wish,
    decode,
    encode,
)
from interlocks.conditions import matrix
from interlocks.slow import Violation
from sites.schema import Site

REPEAT_NS = 40_000_000
AGREE_S = 5.0
SAY_AGAIN_S = 1.0
ANOTHER_GUARD = (
    "; a guard remembers in a file of its own: where another one supervised the parts before (spotwise guard PLAN, "
    "started by itself), start that one again, with the --state that it had, and resume then"
)
NOTHING = Wish(0, -1, -1, 0, 0, 0)


class GuardEnd(Protocol):
    """Datagrams to and from the guard."""

    def send(self, data: bytes) -> None: ...
    def receive(self) -> list[bytes]:
        """What came since the last call; never waits."""
        ...


class GuardLink:
    """One session with the guard; without an end it only says that the site wants none, or refuses."""

    def __init__(self, site: Site, key: bytes = b"", end: GuardEnd | None = None) -> None:
        self.site = site
        self.status: Status | None = None
        self.liar: Callable[[Message], Message | None] | None = None
        """Of a fault scenario: what a defective controller makes of what it says; None of it: nothing."""
        self.left: tuple[str, ...] = ()
        """What the guard had kept latched when this session began, and was asked to reset."""
        self._key = key
        self._end = end
        self._session = 0
        self._sequence = 0
        self._wish = NOTHING
        self._said_ns = -(1 << 62)
        self._heard_ns = 0
        permits = site.permits
        self._silent_ns = round((permits.lease_ms + permits.time_out_ms) * 1e6)

    @property
    def attached(self) -> bool:
        """There is a guard at the other end."""
        return self._end is not None

    async def ask(self, limit_s: float) -> Status | None:
        """Is there a guard? None if none answers in time."""
        self._send(Ask())
        end_s = asyncio.get_running_loop().time() + limit_s
        while self.status is None and asyncio.get_running_loop().time() < end_s:
            await asyncio.sleep(0.005)
            self.listen(0)
        return self.status

    async def agree(
        self,
        session: int,
        plan_sha256: str,
        fraction_group: int,
        part: int,
        fraction: int,
        treatment: int,
        ktp: float,
        programs: Sequence[Sequence[LayerProgram]],
        deadline: Deadline,
        begun_by: tuple[str, str] | None = None,
    ) -> None:
        """Tell the guard all limits and wait until it agrees. Raises `Refused` with its reason.

        `programs`: all layers of all fields, as if nothing were delivered yet. `begun_by`: operator and reason of who
        begins a part, which is the reset of what the guard has kept latched (`left`), if it is this person's.
        """
        if self._end is None:
            if "guard" in self.site.permits.required:
                raise Refused(f"site {self.site.name} requires the guard's permits, and no guard is attached")
            return
        self._session, self.status = session, None
        layers = [program for field in programs for program in field]
        sha = bytes.fromhex(plan_sha256)
        said = Session(sha, fraction_group, part, fraction, treatment, len(programs), len(layers), ktp)
        limit = deadline.sooner(AGREE_S)
        say_s = 0.0
        self.left = ()
        while True:
            now_s = asyncio.get_running_loop().time()
            if now_s >= say_s:
                say_s = now_s + SAY_AGAIN_S
                self._send(said)
                for program in layers:
                    self._send(_layer_limits(program, programs[program.field_index]))
                if self.left and begun_by is not None:
                    self.reset(*begun_by)
            await asyncio.sleep(0.005)
            self.listen(0)
            status = self.status
            if self.latched and begun_by is not None and limit.remaining_s() > 0:
                demand_reset_role(self.site, begun_by[0], self.latched)
                if not self.left:
                    self.left, say_s = self.latched, 0.0  # in a session that the guard has heard of
            elif status is not None and status.condition:
                raise Refused(
                    f"the guard {'is latched' if status.state == LATCHED else 'refuses'}: {words(status)}"
                    + (ANOTHER_GUARD if part > 1 and status.condition == "GUARD_RETAINED" else "")
                )
            if status is not None and status.state == AGREED:
                return
            if limit.remaining_s() <= 0:
                raise Refused(f"the guard does not say whether it agrees ({deadline.purpose}); see its own messages")

    def arm(self, field: int, token: int, now_ns: int) -> None:
        """A field is armed; none of its layers may run yet."""
        self._heard_ns = now_ns
        self._say(Wish(1, field, -1, 0, 0, token), now_ns)

    def allow(self, layer: int, first_visit: int, last_visit: int, now_ns: int) -> None:
        """The visits of a layer of the armed field may run."""
        if self._wish.permit:
            self._say(self._wish._replace(layer=layer, first_visit=first_visit, last_visit=last_visit), now_ns)

    def disarm(self, now_ns: int) -> None:
        """Nothing may run."""
        self._say(NOTHING, now_ns)

    @property
    def latched(self) -> tuple[str, ...]:
        """The condition that the guard has latched, as it said last; empty: none."""
        status = self.status
        latched = status is not None and status.state == LATCHED and status.condition in matrix()
        return (status.condition,) if latched and status is not None else ()

    def reset(self, operator: str, reason: str) -> None:
        """The operator resets the latch; the guard has one of its own."""
        self._send(Reset(operator, reason))

    def turn(self, now_ns: int) -> Violation | None:
        """Say again what may run, hear the guard; what it has latched, or its silence, while a field is armed."""
        if self._end is None:
            return None
        self.listen(now_ns)
        if now_ns - self._said_ns >= REPEAT_NS:
            self._say(self._wish, now_ns)
        if not self._wish.permit:
            return None
        status = self.status
        if status is not None and status.state == LATCHED and status.condition in matrix():
            value = None if math.isnan(status.value) else status.value
            limit = None if math.isnan(status.limit) else status.limit
            return Violation(status.condition, value, limit, status.detail)
        silent_ns = now_ns - self._heard_ns
        if not silent_ns <= self._silent_ns:
            return Violation("GUARD_SILENT", silent_ns * 1e-6, self._silent_ns * 1e-6, "")
        return None

    def silence_ms(self, now_ns: int) -> float | None:
        """How long the guard has said nothing; None where there is none, or nothing is armed."""
        return (now_ns - self._heard_ns) * 1e-6 if self._end is not None and self._wish.permit else None

    def listen(self, now_ns: int) -> None:
        """Take what the guard has said."""
        if self._end is None:
            return
        for data in self._end.receive():
            envelope = decode(data, self._key)
            if envelope is None or not isinstance(envelope.message, Status):
                continue
            if envelope.session == self._session or self._session == 0:
                self.status, self._heard_ns = envelope.message, now_ns

    def _say(self, wish: Wish, now_ns: int) -> None:
        self._wish, self._said_ns = wish, now_ns
        self._send(wish)

    def _send(self, message: Message) -> None:
        said = message if self.liar is None else self.liar(message)
        if self._end is not None and said is not None:
            self._sequence += 1
            self._end.send(encode(Envelope(self._session, self._sequence, said), self._key))


def _layer_limits(program: LayerProgram, field: Sequence[LayerProgram]) -> LayerLimits:
    before = sum(len(p.visits) for p in field[: program.layer_index])
    return LayerLimits(
        program.field_index,
        program.layer_index,
        1 + before,
        len(program.visits),
        program.energy_mev_u,
        float(program.visits["particles"].sum()),
        program.rate_per_s,
        float(program.visits["expected_counts_2"].sum()),
    )


def words(status: Status) -> str:
    """What the guard has latched or refuses for."""
    condition = matrix().get(status.condition)
    text = status.condition if condition is None else f"{status.condition}: {condition.cause}"
    if status.detail:
        text += f" ({status.detail})"
    if not math.isnan(status.value):
        text += f"; value {status.value:.6g}, limit {status.limit:.6g}"
    return text
