"""The scan controller: download a layer into a bank and prove it, arm, start, hold, abort, read results."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from drivers.contracts import ENGINE_RESULT_DTYPE, EngineStatus, LayerTable
from drivers.deadline import Deadline
from drivers.errors import DeviceError, DeviceRefused, ReadbackMismatch
from drivers.register_client import RegisterDriver
from drivers.registers import RegisterMap, registers_crc32
from drivers.streaming import stream_to
from drivers.verify import Wanted, loop_ns, until
from drivers.wires.ports import ModbusPort

BANK_ROWS = 16384
"""Bank 1's rows start here."""
ARM, START, HOLD, RESUME, ABORT = 1, 2, 3, 4, 5
IDLE, ARMED, RUNNING, HELD, LAYER_DONE, ABORTED, TRIPPED = range(7)

OFFSETS = ("x_offset_a", "y_offset_a")
STATUS = (
    "heartbeat", "state", "trip", "bank", "visit", "results", "x_current_a", "y_current_a", "acknowledged", *OFFSETS,
)  # fmt: skip


class ScanController(RegisterDriver):
    """Contract `drivers.contracts.ScanController` over a register map of class scan_controller."""

    def __init__(self, name: str, port: ModbusPort, register_map: RegisterMap, *, poll_s: float = 0.01) -> None:
        super().__init__(name, port, register_map, poll_s=poll_s)
        self._crc32: dict[int, int] = {}
        self._bank_locks = (asyncio.Lock(), asyncio.Lock())

    async def stream_to(self, host: str, port: int, slot: int, deadline: Deadline) -> None:
        """Send frames to host:port; returns when the destination reads back and frames leave."""
        await stream_to(self, host, port, slot, deadline)

    async def download(self, bank: int, table: LayerTable, deadline: Deadline) -> None:
        """Write a layer into a bank, read every register back, compare, then compare the engine's CRC.

        The bank counts as empty while it is being written, so that a torn download can never be armed.
        """
        _check_bank(self.name, bank)
        visits = len(table.x_current_a)
        if not 1 <= visits <= BANK_ROWS:
            raise DeviceError(self.name, f"a bank takes 1 to {BANK_ROWS} visits, not {visits}")
        rows = np.zeros(visits, self.link.dtype("visits"))
        rows["x_current_a"] = table.x_current_a
        rows["y_current_a"] = table.y_current_a
        rows["preset_counts"] = table.preset_counts
        rows["time_limit_ms"] = table.time_limit_ms
        rows["flags"] = table.flags
        head = np.zeros(1, self.link.dtype("heads"))
        async with self._bank_locks[bank]:
            self._crc32.pop(bank, None)
            await self.link.write_rows("heads", bank, head, deadline)
            words = await self.link.write_rows("visits", bank * BANK_ROWS, rows, deadline)
            head["first_visit"] = table.first_visit
            head["visits"] = visits
            head["early_on_counts"] = table.early_on_counts
            head["early_off_counts"] = table.early_off_counts
            head["gated"] = table.gated
            head_words = await self.link.write_rows("heads", bank, head, deadline)
            wanted = registers_crc32(words, head_words)
            quantity = f"crc32_{bank}"
            got = (await self.link.read((quantity,), deadline))[quantity]
            if got != wanted:
                raise ReadbackMismatch(
                    self.name,
                    f"{quantity}: wanted {wanted:#010x} over {visits} visits, got {got:#010x}; download again",
                )
            self._crc32[bank] = wanted

    async def arm(
        self, bank: int, arm_token: int, deadline: Deadline, *, x_offset_a: float = 0.0, y_offset_a: float = 0.0
    ) -> None:
        """Arm a bank downloaded by this driver; the engine compares the CRC once more and latches the offsets (A)."""
        _check_bank(self.name, bank)
        if bank not in self._crc32:
            raise DeviceError(self.name, f"arm: bank {bank} holds no verified layer; download one first")
        values = {
            "command": ARM,
            "command_bank": bank,
            "command_token": arm_token,
            "command_crc32": self._crc32[bank],
            "command_x_offset_a": x_offset_a,
            "command_y_offset_a": y_offset_a,
        }
        await self.link.request("command", values, deadline)
        names = ("state", "bank", "armed_token", *OFFSETS)
        wanted = [ARMED, bank, arm_token, round(x_offset_a, 3), round(y_offset_a, 3)]
        await until(
            self.name,
            Wanted("state, bank, token, offsets", f"armed, {', '.join(map(str, wanted[1:]))}"),
            lambda: self.link.read(names, deadline),
            lambda got: [round(got[n], 3) for n in names] == wanted,
            lambda got: f"{self._state(got['state'])}, {', '.join(str(got[n]) for n in names[1:])}",
            poll_s=self.poll_s,
            deadline=deadline,
        )

    async def start(self, deadline: Deadline) -> None:
        """Run the armed bank; returns when it runs, is held by the gate, or is done already."""
        await self._command(START, (RUNNING, HELD, LAYER_DONE), deadline)

    async def attend(self) -> None:
        """Nothing: the spot engine steps by itself."""
        await asyncio.sleep(0)

    async def hold(self, on: bool, deadline: Deadline) -> None:
        """Hold, or end this hold.

        On: returns when the engine no longer runs. Off: returns when the engine took the command; whether
        beam comes back is also up to the gating device's line.
        """
        if on:
            await self._command(HOLD, (IDLE, ARMED, HELD, LAYER_DONE, ABORTED, TRIPPED), deadline)
        else:
            await self.link.request("command", {"command": RESUME}, deadline)

    async def abort(self, deadline: Deadline) -> None:
        """End the layer here; returns when the engine neither runs nor is armed."""
        await self._command(ABORT, (IDLE, LAYER_DONE, ABORTED, TRIPPED), deadline)

    async def _command(self, command: int, states: tuple[int, ...], deadline: Deadline) -> None:
        await self.link.request("command", {"command": command}, deadline)
        got = await until(
            self.name,
            Wanted("state", " or ".join(self._state(s) for s in states)),
            lambda: self.link.read(("state", "trip"), deadline),
            lambda got: got["state"] in states or got["state"] == TRIPPED,
            lambda got: self._state(got["state"]),
            poll_s=self.poll_s,
            deadline=deadline,
        )
        if got["state"] not in states:
            trip = self.map.register("trip").field.label(got["trip"])
            raise DeviceRefused(self.name, f"command {command}: the engine is tripped ({trip})")

    async def status(self, deadline: Deadline) -> EngineStatus:
        """Read-back."""
        t_ns = loop_ns()
        got = await self.link.read(STATUS, deadline)
        return EngineStatus(
            t_ns=t_ns,
            state=got["state"],
            trip=got["trip"],
            bank=got["bank"],
            visit=got["visit"],
            results=got["results"],
            acknowledged=got["acknowledged"],
            x_current_a=got["x_current_a"],
            y_current_a=got["y_current_a"],
            x_offset_a=got["x_offset_a"],
            y_offset_a=got["y_offset_a"],
            heartbeat=got["heartbeat"],
        )

    async def results(self, first: int, count: int, deadline: Deadline) -> NDArray[np.void]:
        """Rows [first, first + count) of the result ring as `ENGINE_RESULT_DTYPE`."""
        rows = await self.link.read_rows("results", first, count, deadline)
        results = np.zeros(count, ENGINE_RESULT_DTYPE)
        for name in ("visit", "counts", "t_start_ns", "t_end_ns", "x_current_a", "y_current_a", "flags"):
            results[name] = rows[name]
        results["beam_on_ns"] = rows["beam_on_us"].astype(np.int64) * 1000
        return results

    async def acknowledge(self, results: int, deadline: Deadline) -> None:
        """Rows before this one are journalled and may be overwritten."""
        await self.link.write({"acknowledged": results}, deadline)

    def _state(self, state: int) -> str:
        return self.map.register("state").field.label(state)


def _check_bank(device: str, bank: int) -> None:
    if bank not in (0, 1):
        raise DeviceError(device, f"there are banks 0 and 1, not {bank}")
