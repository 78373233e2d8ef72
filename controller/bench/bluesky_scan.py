"""The yardstick of `bench step`: a bluesky `list_scan` whose devices ask the same of the same registers.

One motor (both magnets) and one detector (the spot), by bluesky's own protocols, on pymodbus's blocking client. They
do a transaction where it is wanted and return a status that is done already, which spares bluesky the threads and
callbacks that such devices usually have. Nobody subscribes to the documents. bluesky is an optional extra (`bench`).
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from importlib.metadata import version
from typing import Any

from drivers.contracts import LayerTable, MagnetReadback
from drivers.errors import SpotwiseError
from drivers.magnet_supply import PATIENCE_S, READBACK, TIMER_S, SupplyLimits, arrived
from drivers.preset_electrometer import STATUS
from drivers.registers import FieldCodec, RegisterMap, load_map
from drivers.scan_controller import ABORTED, LAYER_DONE, TRIPPED
from drivers.step_engine import SURE
from sites.schema import Device, Site, TcpAddress

LONGEST_S = 5.0
"""A visit that takes longer does not come to its end."""
STEP = ("step_visit", "step_next_visit", "step_next_counts", "step_next_limit_ms")


def bluesky_version() -> str | None:
    """Of the installed bluesky; None where there is none."""
    return version("bluesky") if importlib.util.find_spec("bluesky") is not None else None


class Done:
    """A bluesky status of what has been done already."""

    done = True
    success = True

    def add_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return None


def _client(address: TcpAddress) -> Any:
    """A connected blocking client; its library annotates half of it."""
    from pymodbus.client import ModbusTcpClient  # noqa: PLC0415  # only where the bench runs

    client: Any = ModbusTcpClient(address.host, port=address.port)
    return _connected(client, address.place)


def _connected(client: Any, place: str) -> Any:
    if not client.connect():
        raise SpotwiseError(f"no answer at {place}")
    return client


class Registers:
    """Named registers of one device on a blocking client; keeps what it asks."""

    def __init__(self, device: Device) -> None:
        if not isinstance(device.address, TcpAddress):
            raise SpotwiseError("the bench's devices must be on Modbus TCP")
        self.map: RegisterMap = load_map(device.map)
        self.asked: list[tuple[str, int, tuple[int, ...], int]] = []
        self._client = _client(device.address)
        self._codecs = {r.name: FieldCodec(r.field) for r in self.map.registers}

    def close(self) -> None:
        self._client.close()

    def read(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Registers of one neighbourhood, in one FC03."""
        registers = [self.map.register(name) for name in names]
        start = min(r.address for r in registers)
        count = max(r.end for r in registers) - start
        self.asked.append(("FC03", start, (), count))
        words = self._client.read_holding_registers(start, count=count).registers
        return {
            r.name: self._codecs[r.name].read(words[r.address - start : r.address - start + r.field.size])
            for r in registers
        }

    def write(self, values: dict[str, Any], extra: int = 0) -> list[int]:
        """Neighbouring registers in one FC23, which reads them and `extra` more back; returns those."""
        start = self.map.register(next(iter(values))).address
        words = [word for name, value in values.items() for word in self._codecs[name].encode(value)]
        count = len(words) + extra
        self.asked.append(("FC23", start, tuple(words), count))
        back = self._client.readwrite_registers(
            read_address=start, read_count=count, write_address=start, values=words
        ).registers
        if back[: len(words)] != words:
            raise SpotwiseError(f"registers from {start}: wanted {words}, got {back}")
        return list(back[len(words) :])


class Magnets:
    """Both magnets as one motor of bluesky; a position is (x, y) in A."""

    name = "magnets"
    parent = None

    def __init__(self, registers: Registers, limits: SupplyLimits) -> None:
        self.registers = registers
        self.limits = limits
        self.hints = {"fields": ["magnets_x"]}
        self._at = (0.0, 0.0)

    @property
    def position(self) -> tuple[float, float]:
        return self._at

    def set(self, value: tuple[float, float]) -> Done:
        """Set-points, then read-backs until both currents have settled: as `MagnetSupply` does it."""
        x, y = value
        begun = time.monotonic()
        travel = max(abs(x - self._at[0]), abs(y - self._at[1])) / self.limits.slew_a_per_s
        move_s = travel + self.limits.settle_us * 1e-6
        self.registers.write({"x_set_a": x, "y_set_a": y})
        wait_s = begun + move_s - TIMER_S - time.monotonic()
        if wait_s > TIMER_S:
            time.sleep(wait_s)
        while True:
            got = self.registers.read(READBACK)
            x_set, y_set, x_now, y_now, inside_us = (float(got[name]) for name in READBACK[:-1])
            there = MagnetReadback(x_set, y_set, x_now, y_now, inside_us, int(got["heartbeat"]))
            if arrived(there, x, y, self.limits):
                self._at = (x, y)
                return Done()
            if time.monotonic() > begun + move_s + PATIENCE_S:
                raise SpotwiseError(f"bluesky: the magnets do not arrive at {value}: {there}")

    def read(self) -> dict[str, Any]:
        now = time.time()
        return {f"magnets_{axis}": {"value": v, "timestamp": now} for axis, v in zip("xy", self._at, strict=True)}

    def describe(self) -> dict[str, Any]:
        return {f"magnets_{axis}": {"source": "supply", "dtype": "number", "shape": []} for axis in "xy"}

    def read_configuration(self) -> dict[str, Any]:
        return {}

    def describe_configuration(self) -> dict[str, Any]:
        return {}


class Spot:
    """The spot preset as a detector of bluesky: a trigger lets a visit go and is done when it is over."""

    name = "spot"
    parent = None

    def __init__(self, registers: Registers) -> None:
        self.registers = registers
        self.hints = {"fields": ["spot_visit"]}
        self._counter = 0
        self._counts_per_s = 0.0

    def arm(self, table: LayerTable) -> None:
        """A layer was armed by somebody else, with its first preset."""
        self._table = table
        self._row = 0
        self._counter = int(self.registers.read(("step_accepted",))["step_accepted"])
        self.registers.asked.clear()

    def trigger(self) -> Done:
        """Go, with the next preset; then looks until it is over: as `StepEngine` does it."""
        table, row = self._table, self._row
        visit = table.first_visit + row
        last = row + 1 >= len(table.x_current_a)
        values = (visit, 0, 0, 0)
        if not last:
            values = (visit, visit + 1, int(table.preset_counts[row + 1]), int(table.time_limit_ms[row + 1]))
        self._counter = self._counter % 65535 + 1
        accepted, error = self.registers.write(
            {**dict(zip(STEP, values, strict=True)), "step_counter": self._counter}, 2
        )
        if (accepted, error) != (self._counter, 0):
            raise SpotwiseError(f"bluesky: visit {visit} was refused (error {error})")
        gone = time.monotonic()
        counts = float(table.preset_counts[row])
        expected_s = SURE * counts / self._counts_per_s if self._counts_per_s > 0.0 else 0.0
        wait_s = gone + expected_s - TIMER_S - time.monotonic()
        if wait_s > TIMER_S:
            time.sleep(wait_s)
        while True:
            got = self.registers.read(STATUS)
            if (got["spot_waiting"] and got["spot_visit"] == visit + 1) or got["spot_state"] == LAYER_DONE:
                break
            if got["spot_state"] in (ABORTED, TRIPPED) or time.monotonic() > gone + LONGEST_S:
                raise SpotwiseError(f"bluesky: visit {visit} does not end: {got}")
        self._counts_per_s = counts / (got["last_beam_us"] * 1e-6) if got["last_beam_us"] else 0.0
        self._row += 1
        return Done()

    def read(self) -> dict[str, Any]:
        return {"spot_visit": {"value": self._row, "timestamp": time.time()}}

    def describe(self) -> dict[str, Any]:
        return {"spot_visit": {"source": "electrometer", "dtype": "integer", "shape": []}}

    def read_configuration(self) -> dict[str, Any]:
        return {}

    def describe_configuration(self) -> dict[str, Any]:
        return {}


class BlueskyScan:
    """A RunEngine with the two devices."""

    def __init__(self, site: Site, limits: SupplyLimits) -> None:
        from bluesky import RunEngine  # noqa: PLC0415  # an optional extra

        self.magnets = Magnets(Registers(site.devices.scan_controller), limits)
        self.spot = Spot(Registers(site.devices.electrometer_1))
        self._engine: Any = RunEngine({})

    def run(self, table: LayerTable) -> None:
        """Scan an armed layer."""
        from bluesky.plans import list_scan  # noqa: PLC0415

        self.magnets.registers.asked.clear()
        self.spot.arm(table)
        points = list(zip(table.x_current_a.tolist(), table.y_current_a.tolist(), strict=True))
        where: list[Any] = [self.magnets, points]
        self._engine(list_scan([self.spot], *where))

    def asked(self) -> tuple[tuple[str, int, tuple[int, ...], int], ...]:
        """What both devices asked in the last run."""
        return (*self.magnets.registers.asked, *self.spot.registers.asked)

    def close(self) -> None:
        """Close both links and bluesky's loop, which bluesky itself leaves running in a thread of its own."""
        self.magnets.registers.close()
        self.spot.registers.close()
        loop = self._engine.loop
        last: Future[threading.Thread] = Future()

        def stop() -> None:
            last.set_result(threading.current_thread())
            loop.stop()

        loop.call_soon_threadsafe(stop)
        last.result().join()
        loop.close()
