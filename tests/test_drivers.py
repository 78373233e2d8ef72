"""Fast devices through their drivers: what was set is what reads back, and any difference has a name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from drivers.accelerator import Accelerator
from drivers.contracts import LATCH_DTYPE
from drivers.dose_monitor import Electrometer
from drivers.errors import BadInput, DeviceError, DeviceRefused, LinkLost, ReadbackMismatch
from drivers.open import open_device
from drivers.registers import load_map
from drivers.safety_chain import SafetyChain
from drivers.scan_controller import ScanController
from tests.device_models import (
    AcceleratorModel,
    ChainModel,
    DirectPort,
    ElectrometerModel,
    EngineModel,
    loop_clock,
    virtual,
)
from tests.wire_parts import within


def accelerator() -> tuple[Accelerator, AcceleratorModel, DirectPort]:
    model = AcceleratorModel(loop_clock())
    port = DirectPort("accelerator", model.bank)
    return Accelerator("accelerator", port, load_map("accelerator")), model, port


def engine() -> tuple[ScanController, EngineModel, DirectPort]:
    model = EngineModel(loop_clock())
    port = DirectPort("scan_controller", model.bank)
    return ScanController("scan_controller", port, load_map("scan_controller")), model, port


def electrometer() -> tuple[Electrometer, ElectrometerModel, DirectPort]:
    model = ElectrometerModel(loop_clock())
    port = DirectPort("electrometer_2", model.bank)
    return Electrometer("electrometer_2", port, load_map("electrometer")), model, port


BEAM: dict[str, Any] = {"ion": "12C", "energy_mev_u": 144.27, "intensity_level": 3, "port_deg": 90.0, "optics": 1}


@virtual
async def test_a_request_for_beam_reads_back_and_is_found_in_the_status() -> None:
    driver, _, port = accelerator()
    number = await driver.request(**BEAM, deadline=within(1))
    status = await driver.status(within(1))
    assert (status.request_id, status.ion, status.energy_mev_u, status.port_deg) == (number, "12C", 144.27, 90.0)
    assert (status.intensity_level, status.state, status.beam_enabled) == (3, 2, True)
    assert status.t_ns > 0
    # The first request asks which counter is current; from then on a request is one transaction.
    port.log.clear()
    assert await driver.request(**BEAM, deadline=within(1)) == number + 1
    assert [what for what, _, _ in port.log] == ["write_read"]


@virtual
async def test_the_accelerator_says_why_it_refuses() -> None:
    driver, _, _ = accelerator()
    with pytest.raises(DeviceRefused, match=r"accelerator: request request .*431.* was refused: energy \(error 2\)"):
        await driver.request(**{**BEAM, "energy_mev_u": 431.0}, deadline=within(1))
    assert await driver.request(**BEAM, deadline=within(1)) == 2


@virtual
async def test_what_the_map_forbids_is_never_written() -> None:
    driver, _, port = accelerator()
    await driver.request(**BEAM, deadline=within(1))
    port.log.clear()
    with pytest.raises(
        DeviceError, match=r"not written: request_energy_mev_u: 501 is outside its hard limits 0 to 500"
    ):
        await driver.request(**{**BEAM, "energy_mev_u": 501.0}, deadline=within(1))
    with pytest.raises(DeviceError, match="ion '4He' is not in"):
        await driver.request(**{**BEAM, "ion": "4He"}, deadline=within(1))
    assert [entry for entry in port.log if entry[0] != "read"] == []


@virtual
async def test_a_read_back_that_differs_names_the_register() -> None:
    driver, _, port = accelerator()

    def other_energy(address: int, words: list[int]) -> list[int]:
        return [*words[:2], words[2] ^ 1, *words[3:]] if address == 64 else words

    port.tamper = other_energy
    with pytest.raises(ReadbackMismatch, match=r"request_energy_mev_u: wanted 144.27 MeV/u .*tolerance exact.*, got"):
        await driver.request(**BEAM, deadline=within(1))


@virtual
async def test_an_impossible_reading_is_an_error_not_a_value() -> None:
    driver, model, _ = accelerator()
    model.shown_energy = 600.0
    with pytest.raises(DeviceError, match=r"read energy_mev_u: 600 is outside its hard limits 0 to 500 MeV/u"):
        await driver.status(within(1))
    model.shown_energy = 100.0
    model.bank.set("state", 77)
    with pytest.raises(DeviceError, match=r"read state: 77 is no known code"):
        await driver.status(within(1))


@virtual
async def test_the_stopper_opens_and_closes_and_a_stuck_one_is_a_mismatch_at_the_deadline() -> None:
    driver, model, _ = accelerator()
    await driver.open_stopper(within(1))
    assert model.open
    await driver.release(within(1))
    assert (await driver.status(within(1))).beam_enabled is False
    model.stopper_stuck = True
    with pytest.raises(ReadbackMismatch, match=r"stopper_open: wanted False .*got True at the deadline \(stop now\)"):
        await driver.stop(within(1, "stop now"))
    model.stopper_stuck = False
    await driver.stop(within(1))
    assert not model.open


@virtual
async def test_a_silent_device_is_a_lost_link_at_the_deadline() -> None:
    driver, _, port = accelerator()
    port.dead = True
    with pytest.raises(LinkLost, match="status"):
        await driver.status(within(0.5, "status"))
    assert asyncio.get_running_loop().time() == pytest.approx(0.5, abs=0.01)
    port.dead = False
    # A lost request leaves nothing behind: the next one asks for the counter again.
    await driver.request(**BEAM, deadline=within(1))
    port.dead = True
    with pytest.raises(LinkLost):
        await driver.request(**BEAM, deadline=within(0.2))
    port.dead = False
    await driver.request(**BEAM, deadline=within(1))


@virtual
async def test_a_device_that_never_judges_a_request_is_a_mismatch() -> None:
    driver, _, port = accelerator()
    port.tamper = lambda address, words: [*words[:-2], 0, 0] if address == 64 else [0] * len(words)
    with pytest.raises(ReadbackMismatch, match=r"request request: wanted counter 1 accepted .*got counter 0"):
        await driver.request(**BEAM, deadline=within(0.3))


@virtual
async def test_requests_take_turns_and_waiting_counts_against_the_deadline() -> None:
    driver, _, port = accelerator()
    port.dead = True
    first = asyncio.create_task(driver.request(**BEAM, deadline=within(2)))
    await asyncio.sleep(0.01)
    with pytest.raises(LinkLost, match="an earlier one is still under way"):
        await driver.request(**BEAM, deadline=within(0.1))
    with pytest.raises(LinkLost):
        await first


@virtual
async def test_a_status_is_one_transaction() -> None:
    for make in (accelerator, engine, electrometer):
        driver, _, port = make()
        await driver.status(within(1))
        assert [what for what, _, _ in port.log] == ["read"], driver.name


@virtual
async def test_two_tasks_can_ask_at_once() -> None:
    driver, _, _ = accelerator()
    numbers = await asyncio.gather(*(driver.request(**BEAM, deadline=within(1)) for _ in range(5)))
    assert sorted(numbers) == [1, 2, 3, 4, 5]


@virtual
async def test_identify_tells_who_answers_and_refuses_a_map_of_another_version() -> None:
    driver, model, _ = accelerator()
    identity = await driver.identify(within(1))
    assert (identity.device_id, identity.simulated, identity.boot_nonce) == ("SIM-ACC-1", True, 0x1234567890ABCDEF)
    assert identity.map_sha256 == driver.map.map_sha256
    model.bank.set("map_version", 9)
    with pytest.raises(ReadbackMismatch, match=r"map_version: wanted 2 .*got 9"):
        await driver.identify(within(1))
    model.bank.set("map_magic", 0)
    with pytest.raises(DeviceError, match="map_magic: 0 is outside"):
        await driver.identify(within(1))


@virtual
async def test_a_self_test_is_waited_for_and_its_failure_is_an_error() -> None:
    driver, model, _ = electrometer()
    await driver.self_test(within(2))
    assert (await driver.status(within(1))).self_test == 2
    model.test_result = 3
    with pytest.raises(DeviceError, match="self_test: wanted passed, got failed"):
        await driver.self_test(within(2))
    with pytest.raises(ReadbackMismatch, match=r"self_test: wanted passed .*got running at the deadline"):
        await driver.self_test(within(0.1))


@virtual
async def test_frames_are_sent_where_they_should_go() -> None:
    driver, model, _ = electrometer()
    await driver.stream_to("localhost", 15030, 1, within(1))
    assert model.bank.get("stream_1_ipv4") == 0x7F000001
    assert model.bank.get("stream_1_port") == 15030
    assert model.bank.get("stream_0_enable") is False
    assert (await driver.status(within(1))).streaming
    with pytest.raises(DeviceError, match="is no IPv4 address"):
        await driver.stream_to("room.example", 15030, 0, within(1))
    with pytest.raises(DeviceError, match="slots 0 and 1"):
        await driver.stream_to("127.0.0.1", 15030, 2, within(1))


@virtual
async def test_backup_limits_are_loaded_latches_read_and_a_trip_is_reset() -> None:
    driver, model, port = electrometer()
    limits = np.arange(500, dtype=np.uint32) * 70_000
    await driver.load_backup(1, 900, limits, 1234567.8, within(5), pedestal_per_s=48.0)
    assert_array_equal(model.bank.rows("backup", 16384, 500)["limit_counts"], limits)
    assert model.bank.rows("heads", 1, 1)[0].tolist() == (900, 500, 1234567, 48)
    rows = np.zeros(45, model.bank.codec("latches").dtype)
    rows["visit"] = np.arange(45) + 1
    rows["counts"] = 2**50 + np.arange(45)
    model.bank.set_rows("latches", 32760, rows)
    port.log.clear()
    latches = await driver.latches(32760, 45, within(1))
    assert latches.dtype == LATCH_DTYPE
    assert_array_equal(latches["counts"], rows["counts"])
    assert [count // 6 for _, _, count in port.log] == [20, 20, 5]
    model.bank.set("trip", 1)
    model.bank.set("trip_visit", 903)
    status = await driver.status(within(1))
    assert (status.tripped, status.trip_visit, status.temperature_c, status.pressure_hpa) == (True, 903, 22.0, 1005.0)
    await driver.reset_trip(within(1))
    assert not (await driver.status(within(1))).tripped
    await driver.acknowledge(45, within(1))


@virtual
async def test_the_chain_arms_inside_a_session_and_says_why_not() -> None:
    model = ChainModel(loop_clock())
    driver = SafetyChain("safety_chain", DirectPort("safety_chain", model.bank), load_map("safety_chain"))
    with pytest.raises(DeviceRefused, match="no_session"):
        await driver.arm(3, within(1))
    with pytest.raises(DeviceError, match="new_time_out_ms: 300 is outside its hard limits 1 to 250 ms"):
        await driver.open_session(5, 300.0, within(1))
    await driver.open_session(0xABCDEF0123456789, 10.0, within(1))
    assert model.bank.get("time_out_ms") == 10.0
    model.bank.set("door_closed", False)
    with pytest.raises(DeviceRefused, match="input_open"):
        await driver.arm(3, within(1))
    model.bank.set("door_closed", True)
    await driver.arm(2**63 + 3, within(1))
    status = await driver.status(within(1))
    assert (status.armed, status.arm_token, status.ion_sensor, status.door_closed) == (True, 2**63 + 3, "12C", True)
    await driver.disarm(within(1))
    assert not (await driver.status(within(1))).armed


def test_a_map_that_lacks_what_the_driver_needs_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = Path(load_map("gantry").source).read_text("utf-8")
    path.write_text(text.replace('"moving"', '"drive_on"'), "utf-8")
    with pytest.raises(BadInput, match=r"mine.toml lacks what a gantry needs: moving; compare with the shipped map"):
        open_device("gantry", wire="modbus_tcp", host="127.0.0.1", port=1502, map=path)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"wire": "modbus_tcp", "map": "gantry"}, "needs host and port"),
        ({"wire": "modbus_rtu", "map": "gantry"}, "needs path and baud"),
        ({"wire": "ascii", "map": "gantry", "path": "/x", "baud": 9600}, "wanted an ascii map for a couch"),
        ({"wire": "modbus_tcp", "map": "couch", "host": "h", "port": 1}, "no driver for device 'couch'"),
        ({"wire": "pigeon", "map": "gantry"}, "none of modbus_tcp, modbus_rtu, ascii"),
    ],
)
def test_an_address_that_does_not_fit_its_map_is_bad_input(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        open_device("gantry", **given)
