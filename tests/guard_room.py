"""A guard whose wires are in the test's hands: frames, messages and time by hand, and what left in its order."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from drivers.wires import permits
from drivers.wires.guard_link import (
    Envelope,
    Message,
    Session,
    Wish,
    decode,
    encode,
)
from drivers.wires.permits import Permit
from interlocks import guard as guard_module
from interlocks import guard_digest as d
from interlocks.guard import Guard
from interlocks.guard_agreement import Air
from interlocks.guard_state import Memory, StateFile
from tests.delivery_rig import EXAMPLES
from tests.guard_talk import COUNTER, MS, SITE, START_NS, TOKEN, TREATMENT, WALL_NS, Talk, plan

KEY = bytes(range(16))


class Kept(StateFile):
    """A memory that notes what is done to it."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path)
        self.done: list[str] = []

    def save(self, memory: Memory) -> None:
        self.done.append("save")
        super().save(memory)

    def close(self) -> None:
        self.done.append("close")


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
