"""The couch: its driver against the simulated one, over a pty and in virtual time, and its line commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.couch import Couch
from drivers.errors import DeviceError, DeviceRefused, ReadbackMismatch
from drivers.line_commands import format_command, parse_command
from drivers.open import open_device
from drivers.register_codec import LimitError
from drivers.registers import load_map
from drivers.wires.ports import IllegalValue
from simulators.devices.couch import SimulatedCouch
from simulators.devices.register_device import DeviceIdentity
from simulators.devices.servers import serve_ascii
from tests.device_models import loop_clock, virtual
from tests.wire_parts import on_both_loops, within

IDENTITY = DeviceIdentity("SIM-1", 2**63 + 1)
BAUD = 115200


class LinePort:
    """An `AsciiPort` without a wire; `tamper` may change the answers."""

    def __init__(self, model: SimulatedCouch) -> None:
        self.device = "couch"
        self.model = model
        self.tamper: Callable[[str], str] = lambda text: text

    async def connect(self, deadline: Any) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        await asyncio.sleep(0)

    async def query(self, command: str, deadline: Any) -> str:
        await asyncio.sleep(0.003)
        try:
            return self.tamper(self.model.answer(command))
        except IllegalValue as error:
            raise DeviceRefused(self.device, str(error)) from error


def couch_model(speed: float) -> SimulatedCouch:
    return SimulatedCouch(loop_clock(), load_map("couch"), IDENTITY, speed_mm_per_s=speed, speed_deg_per_s=speed)


def couch(speed: float = 50.0) -> tuple[Couch, SimulatedCouch, LinePort]:
    model = couch_model(speed)
    port = LinePort(model)
    return Couch("couch", port, load_map("couch")), model, port


THERE: dict[str, Any] = {
    "vertical_mm": -120.5, "longitudinal_mm": 250.0, "lateral_mm": None, "rotation_deg": 90.0, "pitch_deg": 1.5,
    "roll_deg": -2.0, "tolerance_mm": 0.5, "tolerance_deg": 0.3,
}  # fmt: skip


@virtual
async def test_the_couch_goes_where_it_should_and_leaves_an_axis_that_is_none() -> None:
    driver, model, _ = couch()
    model.axes["lateral_mm"].move(33.0)
    await asyncio.sleep(1)
    status = await driver.move(**THERE, deadline=within(60))
    assert status.lateral_mm == 33.0
    assert (status.vertical_mm, status.longitudinal_mm, status.rotation_deg) == (-120.5, 250.0, 90.0)
    assert (status.pitch_deg, status.roll_deg, status.moving) == (1.5, -2.0, False)
    assert (await driver.identify(within(1))).boot_nonce == 2**63 + 1


@virtual
async def test_the_couch_names_what_went_wrong() -> None:
    driver, model, port = couch()
    with pytest.raises(DeviceError, match=r"not sent: move: pitch_deg: 31 is outside its hard limits -30 to 30 deg"):
        await driver.move(**{**THERE, "pitch_deg": 31.0}, deadline=within(10))
    port.tamper = lambda text: text.replace("250.00", "250.01")
    with pytest.raises(
        ReadbackMismatch, match=r"targets: wanted .*longitudinal_mm 250.0.*got .*longitudinal_mm 250.01"
    ):
        await driver.move(**THERE, deadline=within(10))
    port.tamper = lambda text: text
    assert not model.moving
    model.stuck = True
    with pytest.raises(ReadbackMismatch, match=r"lateral_mm as it is.*at rest .*got vertical_mm .*moving"):
        await driver.move(**THERE, deadline=within(3))
    model.stuck = False
    model.fault = True
    with pytest.raises(DeviceRefused, match="drive fault"):
        await driver.move(**THERE, deadline=within(3))
    port.tamper = lambda text: "nan " + text.split(" ", 1)[1]
    with pytest.raises(DeviceError, match=r"answer to POS: vertical_mm is 'nan', no number with 2 decimals"):
        await driver.status(within(1))
    port.tamper = lambda text: "1 2 3"
    with pytest.raises(DeviceError, match="wanted 9 values, got 3"):
        await driver.status(within(1))
    port.tamper = lambda text: text
    model.axes["pitch_deg"].move(40.0)
    await asyncio.sleep(2)
    with pytest.raises(DeviceError, match="pitch_deg: 40 is outside its hard limits"):
        await driver.status(within(1))


@virtual
async def test_cancelling_a_couch_move_stops_every_axis() -> None:
    driver, model, _ = couch(10.0)
    moving = asyncio.create_task(driver.move(**THERE, deadline=within(60)))
    await asyncio.sleep(2)
    assert model.moving
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert not model.moving


DECIMAL = st.integers(-30_00, 30_00).map(lambda n: n / 100)
OPTIONAL = st.one_of(st.none(), DECIMAL)


@given(st.fixed_dictionaries({
    "vertical_mm": OPTIONAL, "longitudinal_mm": OPTIONAL, "lateral_mm": OPTIONAL,
    "rotation_deg": DECIMAL, "pitch_deg": DECIMAL, "roll_deg": DECIMAL,
}))  # fmt: skip
def test_a_couch_command_reads_as_it_was_written(values: dict[str, float | None]) -> None:
    command = load_map("couch").command("move")
    assert parse_command(load_map("couch"), format_command(command, values)) == (command, values)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_the_couch_refuses_any_other_line_and_does_nothing(line: str) -> None:
    map_ = load_map("couch")
    model = SimulatedCouch(lambda: 0, map_, IDENTITY, speed_mm_per_s=1.0, speed_deg_per_s=1.0)
    try:
        parse_command(map_, line)
    except LimitError:
        with pytest.raises(IllegalValue):
            model.answer(line)
    assert not model.moving


@on_both_loops
async def test_the_couch_works_over_its_serial_line(tmp_path: Path) -> None:
    path = str(tmp_path / "couch")
    model = couch_model(2000.0)
    async with serve_ascii(model, path, BAUD):
        driver = open_device("couch", wire="ascii", path=path, baud=BAUD, map="couch")
        assert isinstance(driver, Couch)
        await driver.connect(within(10))
        assert (await driver.identify(within(10))).map_sha256 == load_map("couch").map_sha256
        status = await driver.move(**THERE, deadline=within(30))
        assert abs(status.longitudinal_mm - 250.0) <= 0.5
        model.fault = True
        with pytest.raises(DeviceRefused, match="drive fault"):
            await driver.move(**THERE, deadline=within(30))
        await driver.close()
