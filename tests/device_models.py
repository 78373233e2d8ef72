"""Small device models behind register maps, and a port that calls a bank directly, for the tests of drivers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from drivers.deadline import Deadline
from drivers.errors import DeviceRefused, LinkLost
from drivers.registers import load_map, registers_crc32
from drivers.wires.modbus_pdu import pack_words, unpack_words
from drivers.wires.ports import DeviceBusy, IllegalAddress, IllegalValue, RegisterBank, RegisterRequest
from drivers.wires.virtual_loop import run_virtual
from simulators.devices.register_device import DeviceIdentity, RegisterDevice, TableHooks

BANK_ROWS = 16384


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test in virtual time."""

    def run() -> None:
        run_virtual(test())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


def loop_clock() -> Callable[[], int]:
    """The running loop's clock in ns."""
    loop = asyncio.get_running_loop()
    return lambda: round(loop.time() * 1e9)


class DirectPort:
    """A `ModbusPort` without a wire. `tamper(address, words)` may change what is read; `dead` answers nothing."""

    def __init__(self, device: str, bank: RegisterBank) -> None:
        self.device = device
        self.bank = bank
        self.tamper: Callable[[int, list[int]], list[int]] = lambda address, words: words
        self.dead = False
        self.log: list[tuple[str, int, int]] = []

    async def connect(self, deadline: Deadline) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        await asyncio.sleep(0)

    async def read(self, address: int, count: int, deadline: Deadline) -> list[int]:
        assert 1 <= count <= 125
        self.log.append(("read", address, count))
        words: list[int] = await self._call(deadline, lambda: self.tamper(address, self.bank.read(address, count)))
        return words

    async def write(self, address: int, values: Sequence[int], deadline: Deadline) -> None:
        assert 1 <= len(values) <= 123
        self.log.append(("write", address, len(values)))
        await self._call(deadline, lambda: self.bank.write(address, values))

    async def write_read(
        self, write_address: int, values: Sequence[int], read_address: int, count: int, deadline: Deadline
    ) -> list[int]:
        assert 1 <= len(values) <= 121
        assert 1 <= count <= 125
        self.log.append(("write_read", read_address, count))

        def both() -> list[int]:
            self.bank.write(write_address, values)
            return self.tamper(read_address, self.bank.read(read_address, count))

        words: list[int] = await self._call(deadline, both)
        return words

    async def exchange(self, requests: Sequence[RegisterRequest], deadline: Deadline) -> list[bytes]:
        answers = []
        for r in requests:
            words = unpack_words(r.data)
            if not r.count:
                await self.write(r.write_address, words, deadline)
                answers.append(b"")
            elif not words:
                answers.append(pack_words(await self.read(r.read_address, r.count, deadline)))
            else:
                back = await self.write_read(r.write_address, words, r.read_address, r.count, deadline)
                answers.append(pack_words(back))
        return answers

    async def _call(self, deadline: Deadline, action: Callable[[], Any]) -> Any:
        await asyncio.sleep(0.001)
        if self.dead:
            await asyncio.sleep(deadline.remaining_s())
            raise LinkLost(self.device, f"no answer by the deadline ({deadline.purpose})")
        try:
            return action()
        except (IllegalAddress, IllegalValue, DeviceBusy) as error:
            raise DeviceRefused(self.device, f"{type(error).__name__}: {error}") from error


class AcceleratorModel:
    """Obeys at once; refuses energies above 430; `stopper_stuck` leaves the stopper as it is."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.enabled = False
        self.open = False
        self.stopper_stuck = False
        self.shown_energy = 0.0
        self.bank = RegisterDevice(
            load_map("accelerator"),
            identity=DeviceIdentity("SIM-ACC-1", 0x1234567890ABCDEF),
            now_ns=now_ns,
            getters={
                "beam_enabled": lambda: self.enabled,
                "stopper_open": lambda: self.open,
                "energy_mev_u": lambda: self.shown_energy,
            },
            requests={"request": self.request, "command": self.command},
        )

    def request(self, values: dict[str, Any]) -> int:
        if values["request_energy_mev_u"] > 430.0:
            return 2
        self.enabled = True
        self.shown_energy = values["request_energy_mev_u"]
        self.bank.set("ion", values["request_ion"])
        self.bank.set("intensity_level", values["request_intensity_level"])
        self.bank.set("port_deg", values["request_port_deg"])
        self.bank.set("state", 2)
        self.bank.set("state_request", self.bank.get("request_counter"))
        return 0

    def command(self, values: dict[str, Any]) -> int:
        command = values["command"]
        if command in (1, 3):
            self.enabled = False
        if command in (2, 3) and not self.stopper_stuck:
            self.open = command == 2
        return 0 if command in (1, 2, 3) else 1


class EngineModel:
    """Holds banks, computes their CRC, and delivers a layer in no time; `next_state` is where start leads."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.next_state = 4
        self.takes_offsets = True
        self.busy_bank: int | None = None
        self.bank = RegisterDevice(
            load_map("scan_controller"),
            identity=DeviceIdentity("SIM-SCAN-1", 7),
            now_ns=now_ns,
            getters={"crc32_0": lambda: self.crc32(0), "crc32_1": lambda: self.crc32(1)},
            requests={"command": self.command},
            tables={"visits": TableHooks(check=self.may_write), "results": TableHooks(read=self.read_results)},
        )
        self.results = np.zeros(32768, self.bank.codec("results").dtype)

    def may_write(self, first: int, count: int) -> None:
        if first // BANK_ROWS == self.busy_bank:
            raise DeviceBusy("bank runs")

    def read_results(self, first: int, count: int) -> Any:
        return self.results[np.arange(first, first + count) % len(self.results)]

    def visits(self, bank: int) -> int:
        return int(self.bank.rows("heads", bank, 1)["visits"][0])

    def crc32(self, bank: int) -> int:
        first = bank * BANK_ROWS
        rows = self.bank.words("visits")[first : first + self.visits(bank)]
        return registers_crc32(rows, self.bank.words("heads")[bank : bank + 1])

    def command(self, values: dict[str, Any]) -> int:
        state = self.bank.get("state")
        match values["command"]:
            case 1:
                bank = values["command_bank"]
                if not self.visits(bank):
                    return 4
                if values["command_crc32"] != self.crc32(bank):
                    return 3
                self.bank.set("state", 1)
                self.bank.set("bank", bank)
                self.bank.set("armed_token", values["command_token"])
                if self.takes_offsets:
                    self.bank.set("x_offset_a", values["command_x_offset_a"])
                    self.bank.set("y_offset_a", values["command_y_offset_a"])
            case 2:
                if state != 1:
                    return 2
                self.bank.set("state", self.next_state)
            case 3 if state == 2:
                self.bank.set("state", 3)
            case 4 if state == 3:
                self.bank.set("state", 2)
            case 5:
                self.bank.set("state", 5)
        return 0


class ElectrometerModel:
    """Self-test takes 0.2 s and ends as `test_result`."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.now_ns = now_ns
        self.test_result = 2
        self.test_begun_ns: int | None = None
        self.bank = RegisterDevice(
            load_map("electrometer"),
            identity=DeviceIdentity("SIM-EL-2", 9),
            now_ns=now_ns,
            getters={
                "self_test": self.self_test,
                "streaming": lambda: bool(self.bank.get("stream_0_enable") or self.bank.get("stream_1_enable")),
            },
            requests={"command": self.command},
        )
        self.bank.set("pressure_hpa", 1005.0)
        self.bank.set("temperature_c", 22.0)

    def self_test(self) -> int:
        if self.test_begun_ns is None:
            return 0
        return 1 if self.now_ns() - self.test_begun_ns < 200_000_000 else self.test_result

    def command(self, values: dict[str, Any]) -> int:
        if values["command"] == 1:
            self.test_begun_ns = self.now_ns()
        else:
            self.bank.set("trip", 0)
        return 0


class ChainModel:
    """Arms inside a session, unless an input is open."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.bank = RegisterDevice(
            load_map("safety_chain"),
            identity=DeviceIdentity("SIM-CHAIN-1", 11),
            now_ns=now_ns,
            requests={"session": self.session, "command": self.command},
        )
        self.bank.set("door_closed", True)
        self.bank.set("ion_sensor", 6012)

    def session(self, values: dict[str, Any]) -> int:
        self.bank.set("session_nonce", values["new_session_nonce"])
        self.bank.set("time_out_ms", values["new_time_out_ms"])
        return 0

    def command(self, values: dict[str, Any]) -> int:
        if values["command"] == 1:
            if not self.bank.get("session_nonce"):
                return 2
            if not self.bank.get("door_closed"):
                return 3
            self.bank.set("armed", True)
            self.bank.set("arm_token", values["new_arm_token"])
        else:
            self.bank.set("armed", False)
            self.bank.set("closed", False)
        return 0
