"""The safety chain's register side: permit session, arming, and the PLC's inputs and sensors."""

from __future__ import annotations

from typing import Any

from drivers.contracts import ChainStatus
from drivers.deadline import Deadline
from drivers.errors import DeviceError
from drivers.register_client import RegisterDriver
from drivers.registers import Value
from drivers.verify import Wanted, loop_ns, set_and_verify

ARM, DISARM, TEST_CHOPPER = 1, 2, 3
TEST_PASSED, TEST_FAILED = 3, 4
TIME_OUT_TOLERANCE_MS = 0.001
"""Resolution of the register."""

STATUS = (
    "closed", "armed", "arm_token", "open_cause", "permits_received", "permits_rejected", "emergency_stop",
    "door_closed", "room_searched", "room_allocated", "energy_sensor_mev_u", "ion_sensor", "port_sensor_deg",
    "beam_present", "chopper_open", "heartbeat",
)  # fmt: skip


class SafetyChain(RegisterDriver):
    """Contract `drivers.contracts.SafetyChain` over a register map of class safety_chain."""

    async def open_session(self, session_nonce: int, time_out_ms: float, deadline: Deadline) -> None:
        """Open a permit session; returns when nonce and time-out read back."""
        await self._do(
            "session",
            {"new_session_nonce": session_nonce, "new_time_out_ms": time_out_ms},
            ("session_nonce", "time_out_ms"),
            {"session_nonce": session_nonce, "time_out_ms": time_out_ms},
            deadline,
        )

    async def arm(self, arm_token: int, deadline: Deadline) -> None:
        """Accept permits that carry this token; the chain closes with the first valid ones."""
        await self._do(
            "command",
            {"command": ARM, "new_arm_token": arm_token},
            ("armed", "arm_token"),
            {"armed": True, "arm_token": arm_token},
            deadline,
        )

    async def disarm(self, deadline: Deadline) -> None:
        """Open the chain; returns when it reads open and not armed."""
        await self._do("command", {"command": DISARM}, ("closed", "armed"), {"closed": False, "armed": False}, deadline)

    async def test_chopper(self, deadline: Deadline) -> float:
        """Open and close the chopper; returns how long closing took, ms, once result and position switch agree.

        Raises `DeviceRefused` while the stopper is open or the chain armed, `DeviceError` where the test failed.
        """
        label = self.map.register("chopper_test").field.label
        names = ("chopper_open", "chopper_test", "chopper_close_ms")

        async def write() -> None:
            await self.link.request("command", {"command": TEST_CHOPPER}, deadline)

        def over(got: dict[str, Value]) -> bool:
            # the switch may have been read a moment before the result
            return got["chopper_test"] == TEST_FAILED or (
                got["chopper_test"] == TEST_PASSED and not got["chopper_open"]
            )

        def shown(got: dict[str, Value]) -> str:
            return f"{label(int(got['chopper_test']))}, chopper {'open' if got['chopper_open'] else 'closed'}"

        got = await set_and_verify(
            self.name,
            Wanted("chopper_test", f"{label(TEST_PASSED)}, chopper closed"),
            write,
            lambda: self.link.read(names, deadline),
            agrees=over,
            show=shown,
            poll_s=self.poll_s,
            deadline=deadline,
        )
        if got["chopper_test"] == TEST_FAILED:
            raise DeviceError(
                self.name, f"chopper_test: wanted passed, chopper closed; got {shown(got)}; no beam before repair"
            )
        return float(got["chopper_close_ms"])

    async def _do(
        self,
        block: str,
        values: dict[str, Value],
        names: tuple[str, ...],
        wanted: dict[str, float],
        deadline: Deadline,
    ) -> None:
        async def write() -> None:
            await self.link.request(block, values, deadline)

        def agrees(got: dict[str, Any]) -> bool:
            return all(
                abs(got[name] - value) <= TIME_OUT_TOLERANCE_MS if isinstance(value, float) else got[name] == value
                for name, value in wanted.items()
            )

        def text(got: dict[str, Any]) -> str:
            return ", ".join(f"{name} {got[name]}" for name in names)

        await set_and_verify(
            self.name,
            Wanted(block, text(wanted)),
            write,
            lambda: self.link.read(names, deadline),
            agrees=agrees,
            show=text,
            poll_s=self.poll_s,
            deadline=deadline,
        )

    async def status(self, deadline: Deadline) -> ChainStatus:
        """Read-back, one transaction."""
        t_ns = loop_ns()
        got = await self.link.read(STATUS, deadline)
        return ChainStatus(
            t_ns=t_ns,
            closed=got["closed"],
            armed=got["armed"],
            arm_token=got["arm_token"],
            open_cause=got["open_cause"],
            emergency_stop=got["emergency_stop"],
            door_closed=got["door_closed"],
            room_searched=got["room_searched"],
            room_allocated=got["room_allocated"],
            permits_received=got["permits_received"],
            permits_rejected=got["permits_rejected"],
            energy_sensor_mev_u=got["energy_sensor_mev_u"],
            ion_sensor=self.map.register("ion_sensor").field.label(got["ion_sensor"]),
            port_sensor_deg=got["port_sensor_deg"],
            beam_present=got["beam_present"],
            chopper_open=got["chopper_open"],
            heartbeat=got["heartbeat"],
        )
