"""The couch, over its serial line: move six axes, and know that they arrived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivers.contracts import CouchStatus, Identity
from drivers.deadline import Deadline
from drivers.errors import DeviceError, ReadbackMismatch
from drivers.gantry import angle_between
from drivers.line_commands import LineValue, format_command, parse_answer
from drivers.register_codec import LimitError
from drivers.registers import RegisterMap
from drivers.verify import Wanted, loop_ns, stopped_on_failure, until
from drivers.wires.ports import AsciiPort

LENGTHS = ("vertical_mm", "longitudinal_mm", "lateral_mm")
ANGLES = ("rotation_deg", "pitch_deg", "roll_deg")


class Couch:
    """Contract `drivers.contracts.Couch` over a map of class couch, wire ascii."""

    def __init__(self, name: str, port: AsciiPort, register_map: RegisterMap, *, poll_s: float = 0.1) -> None:
        self.name = name
        self.map = register_map
        self.port = port
        self.poll_s = poll_s
        """Pause between reads while the couch moves."""

    async def connect(self, deadline: Deadline) -> None:
        """Open the line."""
        await self.port.connect(deadline)

    async def close(self) -> None:
        """Close the line."""
        await self.port.close()

    @property
    def stale_answers(self) -> int:
        """Answers thrown away so far because nobody waited for them."""
        return self.port.stale_answers

    async def identify(self, deadline: Deadline) -> Identity:
        """Who answers."""
        got = await self._ask("identify", {}, deadline)
        return Identity(got["device_id"], got["simulated"], got["map_sha256"], got["boot_nonce"])

    async def move(
        self,
        *,
        vertical_mm: float | None,
        longitudinal_mm: float | None,
        lateral_mm: float | None,
        rotation_deg: float,
        pitch_deg: float,
        roll_deg: float,
        tolerance_mm: float,
        tolerance_deg: float,
        deadline: Deadline,
    ) -> CouchStatus:
        """Move; None leaves that axis. Returns once every axis is within tolerance and at rest.

        Failing or cancelled, it stops the couch. Raises `ReadbackMismatch` if the device took other
        targets, or at the deadline with the position reached; `DeviceError` outside the map's limits.
        """
        targets: dict[str, LineValue] = {
            "vertical_mm": vertical_mm,
            "longitudinal_mm": longitudinal_mm,
            "lateral_mm": lateral_mm,
            "rotation_deg": rotation_deg,
            "pitch_deg": pitch_deg,
            "roll_deg": roll_deg,
        }

        def agrees(s: CouchStatus) -> bool:
            lengths = all(
                value is None or abs(getattr(s, name) - float(value)) <= tolerance_mm
                for name, value in targets.items()
                if name in LENGTHS
            )
            wanted = (rotation_deg, pitch_deg, roll_deg)
            angles = (s.rotation_deg, s.pitch_deg, s.roll_deg)
            turned = all(angle_between(a, b) <= tolerance_deg for a, b in zip(angles, wanted, strict=True))
            return lengths and turned and not s.moving

        async with stopped_on_failure(self.stop):
            # What the device answers must be, to the last digit, what was sent.
            sent = self._sent("move", targets)
            took = await self._ask("move", targets, deadline)
            if took != sent:
                raise ReadbackMismatch(
                    self.name, f"targets: wanted {_targets(sent)} (tolerance exact), got {_targets(took)}"
                )
            return await until(
                self.name,
                Wanted("position", f"{_targets(targets)}, at rest", f"{tolerance_mm:g} mm, {tolerance_deg:g} deg"),
                lambda: self._healthy(deadline),
                agrees,
                _text,
                poll_s=self.poll_s,
                deadline=deadline,
            )

    async def stop(self, deadline: Deadline) -> None:
        """All drives off; returns at rest."""
        await self._ask("stop", {}, deadline)
        await until(
            self.name,
            Wanted("moving", "False"),
            lambda: self.status(deadline),
            lambda s: not s.moving,
            _text,
            poll_s=self.poll_s,
            deadline=deadline,
        )

    async def status(self, deadline: Deadline) -> CouchStatus:
        """Read-back."""
        t_ns = loop_ns()
        got = await self._ask("status", {}, deadline)
        return CouchStatus(t_ns, *(got[name] for name in (*LENGTHS, *ANGLES, "moving", "fault", "heartbeat")))

    async def _healthy(self, deadline: Deadline) -> CouchStatus:
        status = await self.status(deadline)
        if status.fault:
            raise DeviceError(self.name, f"drive fault at {_text(status)}; clear it at the couch")
        return status

    async def _ask(self, name: str, values: Mapping[str, LineValue], deadline: Deadline) -> dict[str, Any]:
        command = self.map.command(name)
        try:
            line = format_command(command, values)
        except LimitError as error:
            raise DeviceError(self.name, f"not sent: {name}: {error}") from error
        answer = await self.port.query(line, deadline)
        try:
            return parse_answer(command, answer)
        except LimitError as error:
            raise DeviceError(self.name, f"{error}; check encoder, line and map") from error

    def _sent(self, name: str, values: Mapping[str, LineValue]) -> dict[str, LineValue]:
        """The values as they are once written with the map's decimals."""
        digits = {f.name: f.decimals for f in self.map.command(name).arguments}
        return {n: None if v is None else round(float(v), digits[n]) + 0.0 for n, v in values.items()}


def _targets(values: Mapping[str, LineValue]) -> str:
    return ", ".join(f"{n} {'as it is' if v is None else v}" for n, v in values.items())


def _text(s: CouchStatus) -> str:
    axes = ", ".join(f"{n} {getattr(s, n):.2f}" for n in (*LENGTHS, *ANGLES))
    return f"{axes}, {'moving' if s.moving else 'at rest'}"
