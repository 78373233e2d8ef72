"""The wires of a guard that lives in the process of a virtual room: frames, permits and link without a socket."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from interlocks.guard_digest import WORDS as DIGEST_WORDS


class RoomGuardWires:
    """All wires of a guard in this process: frames by the compiled room, permits to its chain, the link in memory.

    Both ends of the link: `heard` and `answer` are the guard's, `send` and `receive` the controller's.
    """

    def __init__(self, to_chain: Callable[[bytes], None]) -> None:
        """`to_chain` takes a permit to the safety chain."""
        self.digest = np.zeros(DIGEST_WORDS, np.int64)
        self._to_chain = to_chain
        self._to_guard: list[bytes] = []
        self._to_controller: list[bytes] = []
        self.dead = False
        """The guard's process has ended: it hears and says nothing any more."""

    def take_frames(self) -> None:
        """The room has put them into the digest."""

    def send_permit(self, data: bytes) -> None:
        """To the safety chain, at once."""
        if not self.dead:
            self._to_chain(data)

    def heard(self) -> list[bytes]:
        """What the controller has sent."""
        came, self._to_guard = self._to_guard, []
        return [] if self.dead else came

    def answer(self, data: bytes) -> None:
        """To the controller."""
        if not self.dead:
            self._to_controller.append(data)

    def send(self, data: bytes) -> None:
        """To the guard."""
        self._to_guard.append(data)

    def receive(self) -> list[bytes]:
        """What the guard has answered."""
        came, self._to_controller = self._to_controller, []
        return came
