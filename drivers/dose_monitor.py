"""The electrometer of a dose monitor: status, self-test, frame destinations, backup limits, latched counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drivers.contracts import LATCH_DTYPE, ElectrometerStatus
from drivers.deadline import Deadline
from drivers.errors import DeviceError
from drivers.register_client import RegisterDriver
from drivers.streaming import stream_to
from drivers.verify import Wanted, loop_ns, set_and_verify

BANK_ROWS = 16384
SELF_TEST, RESET_TRIP = 1, 2
TEST_PASSED, TEST_FAILED = 2, 3

STATUS = (
    "counts", "high_voltage_v", "temperature_c", "pressure_hpa", "self_test", "streaming", "trip", "trip_visit",
    "results", "acknowledged", "heartbeat",
)  # fmt: skip


class Electrometer(RegisterDriver):
    """Contract `drivers.contracts.Electrometer` over a register map of class electrometer."""

    async def status(self, deadline: Deadline) -> ElectrometerStatus:
        """Read-back."""
        t_ns = loop_ns()
        got = await self.link.read(STATUS, deadline)
        return ElectrometerStatus(
            t_ns=t_ns,
            counts=got["counts"],
            high_voltage_v=got["high_voltage_v"],
            temperature_c=got["temperature_c"],
            pressure_hpa=got["pressure_hpa"],
            self_test=got["self_test"],
            streaming=got["streaming"],
            tripped=got["trip"] != 0,
            trip=got["trip"],
            trip_visit=got["trip_visit"],
            results=got["results"],
            acknowledged=got["acknowledged"],
            heartbeat=got["heartbeat"],
        )

    async def self_test(self, deadline: Deadline) -> None:
        """Charge injection; returns when passed, raises `DeviceError` when failed."""
        label = self.map.register("self_test").field.label

        async def write() -> None:
            await self.link.request("command", {"command": SELF_TEST}, deadline)

        got = await set_and_verify(
            self.name,
            Wanted("self_test", label(TEST_PASSED)),
            write,
            lambda: self.link.read(("self_test",), deadline),
            agrees=lambda got: got["self_test"] in (TEST_PASSED, TEST_FAILED),
            show=lambda got: label(got["self_test"]),
            poll_s=self.poll_s,
            deadline=deadline,
        )
        if got["self_test"] != TEST_PASSED:
            raise DeviceError(self.name, "self_test: wanted passed, got failed; check high voltage and chamber")

    async def stream_to(self, host: str, port: int, slot: int, deadline: Deadline) -> None:
        """Send frames to host:port; returns when the destination reads back and frames leave."""
        await stream_to(self, host, port, slot, deadline)

    async def load_backup(
        self,
        bank: int,
        first_visit: int,
        limits: NDArray[np.uint32],
        rate_limit_per_s: float,
        deadline: Deadline,
        *,
        pedestal_per_s: float = 0.0,
    ) -> None:
        """Own limits per visit, every register read back. The bank is empty while it is being written."""
        if bank not in (0, 1) or not 1 <= len(limits) <= BANK_ROWS:
            raise DeviceError(self.name, f"backup: bank {bank} with {len(limits)} limits; 0 or 1 with 1 to {BANK_ROWS}")
        rows = np.zeros(len(limits), self.link.dtype("backup"))
        rows["limit_counts"] = limits
        head = np.zeros(1, self.link.dtype("heads"))
        await self.link.write_rows("heads", bank, head, deadline)
        await self.link.write_rows("backup", bank * BANK_ROWS, rows, deadline)
        head["first_visit"] = first_visit
        head["visits"] = len(limits)
        # Rounded down: a limit may become stricter by a count, never laxer.
        head["rate_limit_per_s"] = int(rate_limit_per_s)
        head["pedestal_per_s"] = int(pedestal_per_s)
        await self.link.write_rows("heads", bank, head, deadline)

    async def latches(self, first: int, count: int, deadline: Deadline) -> NDArray[np.void]:
        """Rows [first, first + count) of the latch ring as `LATCH_DTYPE`."""
        rows = await self.link.read_rows("latches", first, count, deadline)
        latches = np.zeros(count, LATCH_DTYPE)
        latches["visit"] = rows["visit"]
        latches["counts"] = rows["counts"]
        return latches

    async def acknowledge(self, results: int, deadline: Deadline) -> None:
        """Rows before this one are journalled and may be overwritten."""
        await self.link.write({"acknowledged": results}, deadline)

    async def reset_trip(self, deadline: Deadline) -> None:
        """Reset the latched trip; returns when it reads back as gone."""

        async def write() -> None:
            await self.link.request("command", {"command": RESET_TRIP}, deadline)

        label = self.map.register("trip").field.label
        await set_and_verify(
            self.name,
            Wanted("trip", label(0)),
            write,
            lambda: self.link.read(("trip",), deadline),
            agrees=lambda got: got["trip"] == 0,
            show=lambda got: label(got["trip"]),
            poll_s=self.poll_s,
            deadline=deadline,
        )
