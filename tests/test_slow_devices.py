"""Gantry, nozzle and gating: drivers against the simulated devices, over ptys, TCP and in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.errors import DeviceError, DeviceRefused, LinkLost, ReadbackMismatch
from drivers.gantry import Gantry, angle_between
from drivers.gating import Gating
from drivers.nozzle import Nozzle
from drivers.open import open_device
from drivers.registers import load_map
from simulators.devices.axis import Axis
from simulators.devices.gantry import SimulatedGantry
from simulators.devices.gating import SimulatedGating
from simulators.devices.nozzle import SimulatedNozzle
from simulators.devices.register_device import DeviceIdentity
from simulators.devices.servers import serve_modbus_rtu, serve_modbus_tcp
from tests.device_models import DirectPort, loop_clock, virtual
from tests.wire_parts import on_both_loops, within

IDENTITY = DeviceIdentity("SIM-1", 2**63 + 1)
BAUD = 115200


def gantry(speed_deg_per_s: float = 6.0, **more: Any) -> tuple[Gantry, SimulatedGantry, DirectPort]:
    model = SimulatedGantry(loop_clock(), speed_deg_per_s=speed_deg_per_s, start_deg=0.0, **more)
    port = DirectPort("gantry", model.device(load_map("gantry"), IDENTITY))
    return Gantry("gantry", port, load_map("gantry")), model, port


def nozzle_model(now_ns: Callable[[], int], speed_mm_per_s: float, insert_time_s: float) -> SimulatedNozzle:
    return SimulatedNozzle(
        now_ns,
        snout_code=101,
        snout_mm=400.0,
        snout_speed_mm_per_s=speed_mm_per_s,
        insert_time_s=insert_time_s,
        range_shifter_codes=[201, 202],
        ripple_filter_codes=[301],
    )


def nozzle() -> tuple[Nozzle, SimulatedNozzle]:
    model = nozzle_model(loop_clock(), 50.0, 1.0)
    port = DirectPort("nozzle", model.device(load_map("nozzle"), IDENTITY))
    return Nozzle("nozzle", port, load_map("nozzle")), model


@virtual
async def test_the_gantry_arrives_and_says_so_after_the_time_that_it_takes() -> None:
    driver, _, _ = gantry()
    status = await driver.move(90.0, 0.3, within(60))
    assert abs(status.angle_deg - 90.0) <= 0.3
    assert not status.moving
    assert 15.0 <= asyncio.get_running_loop().time() <= 15.5


@virtual
async def test_a_gantry_that_comes_too_late_says_how_far_it_got_and_is_stopped() -> None:
    driver, model, _ = gantry()
    message = (
        r"angle: wanted 90.00 deg, at rest \(tolerance 0.3 deg\), got 5\d.\d\d deg, moving, from 0.00 at the deadline"
    )
    with pytest.raises(ReadbackMismatch, match=message):
        await driver.move(90.0, 0.3, within(10, "field 1"))
    assert not model.moving
    reached = model.angle_deg
    await asyncio.sleep(5)
    assert model.angle_deg == reached


@virtual
async def test_a_stuck_gantry_and_a_faulty_drive_are_two_different_errors() -> None:
    driver, model, _ = gantry()
    model.stuck = True
    with pytest.raises(ReadbackMismatch, match=r"got 0.00 deg, moving"):
        await driver.move(90.0, 0.3, within(5))
    model.stuck = False
    moving = asyncio.create_task(driver.move(90.0, 0.3, within(60)))
    await asyncio.sleep(4)
    model.fault = True
    with pytest.raises(DeviceError, match=r"gantry: drive fault at 2\d.\d\d deg"):
        await moving
    with pytest.raises(DeviceRefused, match="fault"):
        await driver.move(90.0, 0.3, within(60))
    model.fault = False
    await driver.move(90.0, 0.3, within(60))


@virtual
async def test_cancelling_a_move_stops_the_gantry() -> None:
    driver, model, _ = gantry()
    moving = asyncio.create_task(driver.move(180.0, 0.3, within(60)))
    await asyncio.sleep(5)
    assert model.moving
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert not model.moving
    assert model.angle_deg == pytest.approx(30.0, abs=1.0)


@virtual
async def test_a_creeping_gantry_is_seen_in_its_read_back() -> None:
    driver, model, _ = gantry()
    model.creep_deg_per_s = 0.1
    await asyncio.sleep(10)
    assert (await driver.status(within(1))).angle_deg == pytest.approx(1.0, abs=0.02)


@virtual
async def test_a_fixed_line_has_only_its_ports_and_the_limits_are_hard() -> None:
    driver, _, port = gantry(30.0, ports_deg=(0.0, 90.0))
    await driver.move(90.0, 0.3, within(10))
    with pytest.raises(DeviceRefused, match="no_such_port"):
        await driver.move(45.0, 0.3, within(10))
    with pytest.raises(DeviceError, match=r"not written: target_deg: 361 is outside its hard limits 0 to 360 deg"):
        await driver.move(361.0, 0.3, within(10))
    port.dead = True
    with pytest.raises(LinkLost) as caught:
        await driver.move(0.0, 0.3, within(1))
    assert "stopping it failed" in caught.value.__notes__[0]


@virtual
async def test_a_target_that_reads_back_differently_stops_the_move() -> None:
    driver, _, port = gantry()
    port.tamper = lambda address, words: [*words[:2], words[2] ^ 4, *words[3:]] if address == 48 else words
    with pytest.raises(ReadbackMismatch, match=r"target_deg: wanted 90\.0 deg"):
        await driver.move(90.0, 0.3, within(10))


@given(st.floats(0, 360), st.floats(0, 360))
def test_the_angle_between_two_directions_knows_that_360_is_0(a: float, b: float) -> None:
    assert 0 <= angle_between(a, b) <= 180
    assert angle_between(a, b) == pytest.approx(angle_between(b, a), abs=1e-9)
    assert angle_between(a, a + 360) == pytest.approx(0, abs=1e-9)
    assert angle_between(359.9, 0.1) == pytest.approx(0.2)


@virtual
async def test_the_nozzle_brings_all_three_there_and_reads_their_codes() -> None:
    driver, model = nozzle()
    settings: dict[str, Any] = {"range_shifter_code": 202, "ripple_filter_code": 301, "snout_tolerance_mm": 1.0}
    status = await driver.set(snout_mm=200.0, **settings, deadline=within(20))
    assert (status.snout_code, status.range_shifter_code, status.ripple_filter_code) == (101, 202, 301)
    assert abs(status.snout_mm - 200.0) <= 1.0
    again = await driver.set(snout_mm=None, **{**settings, "range_shifter_code": 0}, deadline=within(20))
    assert again.range_shifter_code == 0
    assert again.snout_mm == status.snout_mm
    assert model.ripple_filter.code == 301
    with pytest.raises(DeviceRefused, match="no_such_part"):
        await driver.set(snout_mm=None, **{**settings, "range_shifter_code": 299}, deadline=within(20))


@virtual
async def test_a_changer_that_hangs_and_a_wrong_part_are_told_with_their_codes() -> None:
    driver, model = nozzle()
    settings: dict[str, Any] = {"range_shifter_code": 201, "ripple_filter_code": 0, "snout_tolerance_mm": 1.0}
    model.range_shifter.stuck = True
    with pytest.raises(ReadbackMismatch, match=r"code 201, code 0, at rest .*got 400.0 mm, code 65535, code 0, moving"):
        await driver.set(snout_mm=None, **settings, deadline=within(5))
    model.range_shifter.stuck = False
    model.wrong_range_shifter_code = 202
    with pytest.raises(ReadbackMismatch, match=r"got 400.0 mm, code 202, code 0, at rest"):
        await driver.set(snout_mm=None, **settings, deadline=within(5))
    model.wrong_range_shifter_code = None
    await driver.set(snout_mm=None, **settings, deadline=within(5))
    model.fault = True
    with pytest.raises(DeviceRefused, match="fault"):
        await driver.set(snout_mm=None, **settings, deadline=within(5))


@virtual
async def test_the_gate_follows_the_breathing_around_exhale() -> None:
    now_ns = loop_clock()
    told: list[int] = []
    model = SimulatedGating(now_ns, sources=2, period_s=4.0, duty=0.5, selected=told.append)
    driver = Gating("gating", DirectPort("gating", model.device(load_map("gating"), IDENTITY)), load_map("gating"))
    assert (await driver.status(within(1))).gate_open
    await driver.select(2, within(1))
    samples = [(model.gate_open(t), model.amplitude(t)) for t in range(0, 8_000_000_000, 10_000_000)]
    assert sum(is_open for is_open, _ in samples) == len(samples) // 2
    lowest_closed = min(a for is_open, a in samples if not is_open)
    assert max(a for is_open, a in samples if is_open) <= lowest_closed + 1e-9
    with pytest.raises(DeviceRefused, match="no_such_source"):
        await driver.select(3, within(1))
    model.fault = True
    status = await driver.status(within(1))
    assert (status.fault, status.gate_open, status.source) == (True, False, 2)
    model.fault = False
    model.stuck = True
    assert model.gate_open(3_000_000_000)
    model.stuck = None
    await driver.select(0, within(1))
    assert model.gate_open(3_000_000_000)
    assert told == [2, 0]


@given(st.lists(st.integers(0, 3_000_000_000), max_size=20), st.floats(-50, 50))
def test_a_drive_is_where_it_is_however_often_one_looks(looks: list[int], target: float) -> None:
    now = [0]
    watched = Axis(lambda: now[0], 1.0, 10.0)
    alone = Axis(lambda: now[0], 1.0, 10.0)
    watched.move(target)
    alone.move(target)
    for t in sorted(looks):
        now[0] = t
        assert min(1.0, target) <= watched.position <= max(1.0, target)
    now[0] = 4_000_000_000
    assert watched.position == alone.position
    assert watched.moving == alone.moving == (abs(target - 1.0) > 40.0)


@on_both_loops
async def test_gantry_and_nozzle_work_over_their_serial_lines(tmp_path: Path) -> None:
    gantry_model = SimulatedGantry(loop_clock(), speed_deg_per_s=900.0, start_deg=0.0)
    fast_nozzle = nozzle_model(loop_clock(), 5000.0, 0.05)
    lines = {name: str(tmp_path / name) for name in ("gantry", "nozzle")}
    async with (
        serve_modbus_rtu(gantry_model.device(load_map("gantry"), IDENTITY), lines["gantry"], BAUD, 1),
        serve_modbus_rtu(fast_nozzle.device(load_map("nozzle"), IDENTITY), lines["nozzle"], BAUD, 1),
    ):
        a = open_device("gantry", wire="modbus_rtu", path=lines["gantry"], baud=BAUD, map="gantry")
        b = open_device("nozzle", wire="modbus_rtu", path=lines["nozzle"], baud=BAUD, map="nozzle")
        assert isinstance(a, Gantry)
        assert isinstance(b, Nozzle)
        for driver in (a, b):
            await driver.connect(within(10))
            assert (await driver.identify(within(10))).device_id == "SIM-1"
        status = await a.move(270.0, 0.3, within(30))
        assert abs(status.angle_deg - 270.0) <= 0.3
        codes = await b.set(
            snout_mm=120.0, range_shifter_code=201, ripple_filter_code=301, snout_tolerance_mm=1.0, deadline=within(30)
        )
        assert (codes.range_shifter_code, codes.ripple_filter_code) == (201, 301)
        gantry_model.fault = True
        with pytest.raises(DeviceRefused, match="fault"):
            await a.move(0.0, 0.3, within(30))
        for driver in (a, b):
            await driver.close()


@on_both_loops
async def test_gating_works_over_tcp() -> None:
    model = SimulatedGating(loop_clock(), sources=1, period_s=4.0, duty=0.5)
    async with serve_modbus_tcp(model.device(load_map("gating"), IDENTITY), "127.0.0.1", 0) as wire:
        driver = open_device("gating", wire="modbus_tcp", host="127.0.0.1", port=wire.port, map="gating")
        assert isinstance(driver, Gating)
        await driver.connect(within(10))
        await driver.select(1, within(10))
        assert (await driver.status(within(10))).source == 1
        await driver.close()
