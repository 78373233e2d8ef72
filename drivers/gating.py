"""The gating device: choose its source, read its signal; the gate itself is a wire to the spot engine."""

from __future__ import annotations

from drivers.contracts import GatingStatus
from drivers.deadline import Deadline
from drivers.register_client import RegisterDriver
from drivers.verify import Wanted, loop_ns, set_and_verify

STATUS = ("source", "gate_open", "amplitude", "fault", "heartbeat")


class Gating(RegisterDriver):
    """Contract `drivers.contracts.Gating` over a register map of class gating."""

    async def select(self, source: int, deadline: Deadline) -> None:
        """Choose the source, 0 for off; returns when it reads back."""

        async def write() -> None:
            await self.link.request("select", {"select_source": source}, deadline)

        await set_and_verify(
            self.name,
            Wanted("source", str(source)),
            write,
            lambda: self.status(deadline),
            agrees=lambda s: s.source == source,
            show=lambda s: str(s.source),
            poll_s=self.poll_s,
            deadline=deadline,
        )

    async def status(self, deadline: Deadline) -> GatingStatus:
        """Read-back, one transaction."""
        t_ns = loop_ns()
        got = await self.link.read(STATUS, deadline)
        return GatingStatus(t_ns, *(got[name] for name in STATUS))
