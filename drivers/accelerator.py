"""The accelerator: ask for ion, energy, intensity and port; release; stopper."""

from __future__ import annotations

from drivers.contracts import AcceleratorStatus
from drivers.deadline import Deadline
from drivers.errors import DeviceError
from drivers.register_client import RegisterDriver
from drivers.verify import Wanted, loop_ns, set_and_verify

RELEASE, OPEN_STOPPER, STOP = 1, 2, 3

STATUS = (
    "state", "state_request", "energy_mev_u", "ion", "port_deg", "intensity_level", "spill", "beam_enabled",
    "stopper_open", "heartbeat",
)  # fmt: skip


class Accelerator(RegisterDriver):
    """Contract `drivers.contracts.Accelerator` over a register map of class accelerator."""

    async def request(
        self, *, ion: str, energy_mev_u: float, intensity_level: int, port_deg: float, optics: int, deadline: Deadline
    ) -> int:
        """Ask for beam like this. The block reads back to the last bit, within the map's resolution.

        Returns the request's number, which the status shows as `request_id`. Raises `DeviceRefused`
        with the accelerator's reason, `DeviceError` for an ion or value that the map does not allow.
        """
        try:
            code = self.map.register("request_ion").field.code(ion)
        except KeyError as error:
            raise DeviceError(self.name, f"request_ion: ion {ion!r} is not in {self.map.source}") from error
        return await self.link.request(
            "request",
            {
                "request_ion": code,
                "request_energy_mev_u": energy_mev_u,
                "request_intensity_level": intensity_level,
                "request_port_deg": port_deg,
                "request_optics": optics,
            },
            deadline,
        )

    async def release(self, deadline: Deadline) -> None:
        """No more spills; returns when beam is no longer enabled."""
        await self._command(RELEASE, "beam_enabled", False, deadline)

    async def stop(self, deadline: Deadline) -> None:
        """Close the stopper and release, in one command; returns when its switch says closed."""
        await self._command(STOP, "stopper_open", False, deadline)

    async def open_stopper(self, deadline: Deadline) -> None:
        """Open the stopper; returns when its switch says open."""
        await self._command(OPEN_STOPPER, "stopper_open", True, deadline)

    async def _command(self, command: int, quantity: str, wanted: bool, deadline: Deadline) -> None:
        async def write() -> None:
            await self.link.request("command", {"command": command}, deadline)

        await set_and_verify(
            self.name,
            Wanted(quantity, str(wanted)),
            write,
            lambda: self.link.read((quantity,), deadline),
            agrees=lambda got: got[quantity] is wanted,
            show=lambda got: str(got[quantity]),
            poll_s=self.poll_s,
            deadline=deadline,
        )

    async def status(self, deadline: Deadline) -> AcceleratorStatus:
        """Read-back, one transaction."""
        t_ns = loop_ns()
        got = await self.link.read(STATUS, deadline)
        return AcceleratorStatus(
            t_ns=t_ns,
            state=got["state"],
            request_id=got["state_request"],
            energy_mev_u=got["energy_mev_u"],
            ion=self.map.register("ion").field.label(got["ion"]),
            port_deg=got["port_deg"],
            intensity_level=got["intensity_level"],
            spill=got["spill"],
            beam_enabled=got["beam_enabled"],
            stopper_open=got["stopper_open"],
            heartbeat=got["heartbeat"],
        )
