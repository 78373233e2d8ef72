"""The scan controller's driver: a layer arrives to the last bit or not at all, and results come as asked."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from drivers.contracts import ENGINE_RESULT_DTYPE, LayerTable
from drivers.errors import DeviceError, DeviceRefused, ReadbackMismatch
from drivers.open import open_device
from drivers.registers import load_map
from drivers.scan_controller import ScanController
from drivers.wires.virtual_loop import run_virtual
from simulators.devices.servers import serve_modbus_tcp
from tests.device_models import DirectPort, EngineModel, loop_clock, virtual
from tests.wire_parts import on_both_loops, within


def engine() -> tuple[ScanController, EngineModel, DirectPort]:
    model = EngineModel(loop_clock())
    port = DirectPort("scan_controller", model.bank)
    return ScanController("scan_controller", port, load_map("scan_controller")), model, port


def layer(visits: int, first_visit: int = 1) -> LayerTable:
    numbers = np.arange(visits)
    return LayerTable(
        first_visit=first_visit,
        x_current_a=np.round(np.sin(numbers) * 500, 3),
        y_current_a=np.round(np.cos(numbers) * 500, 3),
        preset_counts=(1000 + numbers).astype(np.uint32),
        time_limit_ms=np.full(visits, 50, np.uint16),
        flags=np.where(numbers == visits - 1, 2, 0).astype(np.uint16),
        early_on_counts=4,
        early_off_counts=9,
        gated=True,
    )


@pytest.mark.parametrize("visits", [1, 15, 16, 601, 16384])
@pytest.mark.parametrize("bank", [0, 1])
def test_a_download_arrives_to_the_last_bit(visits: int, bank: int) -> None:
    async def run() -> None:
        driver, model, port = engine()
        table = layer(visits, 77)
        await driver.download(bank, table, within(60))
        rows = model.bank.rows("visits", bank * 16384, visits)
        assert_array_equal(rows["x_current_a"], table.x_current_a)
        assert_array_equal(rows["y_current_a"], table.y_current_a)
        assert_array_equal(rows["preset_counts"], table.preset_counts)
        assert_array_equal(rows["flags"], table.flags)
        head = model.bank.rows("heads", bank, 1)[0]
        assert head.tolist() == (77, visits, 4, 9, True)
        windows = -(-visits // 15)
        assert sum(entry[0] == "write" and entry[1] == 200 for entry in port.log) == windows
        assert sum(entry[0] == "write_read" and entry[1] == 202 for entry in port.log) == windows

    run_virtual(run())


@virtual
async def test_one_wrong_bit_in_a_download_is_found_and_named() -> None:
    driver, model, port = engine()

    def flip(address: int, words: list[int]) -> list[int]:
        row = model.bank.get("visits_select")
        return [*words[:13], words[13] ^ 1, *words[14:]] if address == 202 and row == 15 else words

    port.tamper = flip
    with pytest.raises(ReadbackMismatch, match=r"visits row 16, preset_counts: wanted registers \[0, 1016\]"):
        await driver.download(0, layer(40), within(5))
    assert model.visits(0) == 0
    with pytest.raises(DeviceError, match="bank 0 holds no verified layer"):
        await driver.arm(0, 5, within(1))


@virtual
async def test_a_wrong_engine_crc_is_found_after_a_perfect_read_back() -> None:
    driver, model, port = engine()
    crc = model.bank.map.register("crc32_1").address
    port.tamper = lambda address, words: [words[0] ^ 1, *words[1:]] if address == crc else words
    with pytest.raises(ReadbackMismatch, match=r"crc32_1: wanted 0x[0-9a-f]{8} over 40 visits, got 0x"):
        await driver.download(1, layer(40), within(5))


@virtual
async def test_a_bank_changed_behind_the_drivers_back_cannot_be_armed() -> None:
    driver, model, _ = engine()
    await driver.download(0, layer(40), within(5))
    model.bank.words("visits")[3, 5] ^= 1
    with pytest.raises(DeviceRefused, match="bank_crc32"):
        await driver.arm(0, 5, within(1))


@virtual
async def test_a_bank_that_runs_refuses_a_download() -> None:
    driver, model, _ = engine()
    model.busy_bank = 1
    await driver.download(0, layer(3), within(5))
    with pytest.raises(DeviceRefused, match="bank runs"):
        await driver.download(1, layer(3), within(5))


@virtual
async def test_a_setpoint_beyond_the_hard_limit_is_not_downloaded() -> None:
    driver, _, port = engine()
    table = layer(3)
    table.x_current_a[1] = 2500.0
    with pytest.raises(DeviceError, match=r"not written: visits.x_current_a, row 1: 2500.0 is outside"):
        await driver.download(0, table, within(5))
    assert not [entry for entry in port.log if entry[1] == 200]
    with pytest.raises(DeviceError, match="takes 1 to 16384 visits"):
        await driver.download(0, layer(0), within(5))
    with pytest.raises(DeviceError, match="banks 0 and 1"):
        await driver.download(2, layer(1), within(5))


@virtual
async def test_the_engine_is_armed_started_held_resumed_and_aborted() -> None:
    driver, model, _ = engine()
    model.next_state = 2
    await driver.download(1, layer(3), within(5))
    await driver.arm(1, 0xFEDCBA9876543210, within(1))
    assert model.bank.get("armed_token") == 0xFEDCBA9876543210
    await driver.start(within(1))
    await driver.hold(True, within(1))
    assert (await driver.status(within(1))).state == 3
    await driver.hold(False, within(1))
    assert (await driver.status(within(1))).state == 2
    await driver.abort(within(1))
    assert (await driver.status(within(1))).state == 5
    with pytest.raises(DeviceRefused, match="wrong_state"):
        await driver.start(within(1))


@virtual
async def test_the_offset_of_a_layer_is_latched_at_arm_and_read_back() -> None:
    driver, _, _ = engine()
    await driver.download(0, layer(3), within(5))
    await driver.arm(0, 1, within(1), x_offset_a=-1.2345, y_offset_a=0.5)
    status = await driver.status(within(1))
    assert (status.x_offset_a, status.y_offset_a) == (-1.234, 0.5)
    await driver.abort(within(1))
    await driver.arm(0, 2, within(1))
    status = await driver.status(within(1))
    assert (status.x_offset_a, status.y_offset_a) == (0.0, 0.0)


@virtual
async def test_an_engine_that_does_not_take_the_offset_is_not_armed() -> None:
    driver, model, _ = engine()
    model.takes_offsets = False
    await driver.download(0, layer(3), within(5))
    with pytest.raises(DeviceError, match=r"offsets.*wanted armed, 0, 1, -1.2, 0.5.*got armed, 0, 1, 0.0, 0.0"):
        await driver.arm(0, 1, within(0.5), x_offset_a=-1.2, y_offset_a=0.5)
    with pytest.raises(DeviceError, match="outside"):
        await driver.arm(0, 1, within(0.5), x_offset_a=60.0)


@virtual
async def test_a_start_that_trips_names_the_trip() -> None:
    driver, model, _ = engine()
    model.next_state = 6
    model.bank.set("trip", 2)
    await driver.download(0, layer(3), within(5))
    await driver.arm(0, 1, within(1))
    with pytest.raises(DeviceRefused, match=r"engine is tripped \(magnet_window\)"):
        await driver.start(within(1))


@virtual
async def test_results_come_in_windows_and_never_a_row_more_than_asked() -> None:
    driver, model, port = engine()
    model.results["visit"] = np.arange(32768)
    model.results["t_start_ns"] = 2**40 + np.arange(32768)
    model.results["beam_on_us"] = 700
    model.results["x_current_a"] = -12.345
    rows = await driver.results(32760, 20, within(1))
    assert rows.dtype == ENGINE_RESULT_DTYPE
    assert rows["visit"].tolist() == [(32760 + i) % 32768 for i in range(20)]
    assert rows["t_start_ns"][0] == 2**40 + 32760
    assert set(rows["beam_on_ns"].tolist()) == {700_000}
    assert rows["x_current_a"][0] == -12.345
    assert [count // 19 for _, _, count in port.log] == [6, 6, 6, 2]
    assert len(await driver.results(5, 0, within(1))) == 0
    with pytest.raises(DeviceError, match="has 32768 rows"):
        await driver.results(0, 32769, within(1))
    await driver.acknowledge(32780, within(1))
    assert (await driver.status(within(1))).acknowledged == 32780


@on_both_loops
async def test_a_layer_goes_over_tcp_and_comes_back() -> None:
    model = EngineModel(loop_clock())
    async with serve_modbus_tcp(model.bank, "127.0.0.1", 0) as wire:
        driver = open_device(
            "scan_controller", wire="modbus_tcp", host="127.0.0.1", port=wire.port, map="scan_controller"
        )
        assert isinstance(driver, ScanController)
        await driver.connect(within(5))
        assert (await driver.identify(within(5))).device_id == "SIM-SCAN-1"
        await driver.download(0, layer(601), within(10))
        await driver.arm(0, 1, within(5))
        await driver.start(within(5))
        assert (await driver.status(within(5))).state == 4
        model.results["visit"][:300] = np.arange(300)
        assert_array_equal((await driver.results(0, 300, within(5)))["visit"], np.arange(300))
        model.busy_bank = 1
        with pytest.raises(DeviceRefused):
            await driver.download(1, layer(20), within(5))
        await driver.close()
