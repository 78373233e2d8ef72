"""A simulated device made of a map behaves as a device should: it checks first, stores all or nothing, acts once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from drivers.registers import load_map, parse_map
from drivers.wires.ports import DeviceBusy, IllegalAddress, IllegalValue
from simulators.devices.register_device import DeviceIdentity, RegisterDevice, TableHooks

IDENTITY = DeviceIdentity("SIM-1", 5)


def gantry(**bound: Any) -> RegisterDevice:
    return RegisterDevice(load_map("gantry"), identity=IDENTITY, now_ns=lambda: 0, **bound)


def engine(**bound: Any) -> RegisterDevice:
    return RegisterDevice(load_map("scan_controller"), identity=IDENTITY, now_ns=lambda: 0, **bound)


def test_it_shows_its_identity_and_uptime() -> None:
    now = [3_000_000_000]
    device = RegisterDevice(load_map("gantry"), identity=IDENTITY, now_ns=lambda: now[0])
    now[0] = 65_540_000_000_000
    words = device.read(0, 25)
    assert words[0] == 0x5357
    assert bytes(b for w in words[2:5] for b in w.to_bytes(2, "big")) == b"SIM-1\0"
    assert words[10] == 1
    assert words[19:23] == [0, 0, 0, 5]
    assert words[23] << 16 | words[24] == 65_537


def test_a_getter_is_asked_at_each_read_and_the_model_is_refreshed_once_before() -> None:
    calls = []
    device = gantry(refresh=lambda: calls.append("refresh"), getters={"angle_deg": lambda: len(calls) * 90.0})
    assert device.read(32, 4) == [0, 9000, 0, 0]
    assert device.read(32, 4) == [0, 18000, 0, 0]
    assert calls == ["refresh", "refresh"]


def test_a_broken_sensor_shows_saturated_values() -> None:
    device = gantry(getters={"angle_deg": lambda: float("nan")})
    assert device.read(32, 2) == [0xFFFF, 0xFFFF]


def test_any_part_of_the_map_can_be_read_even_half_a_value() -> None:
    device = gantry(getters={"angle_deg": lambda: 90.0})
    assert device.read(33, 1) == [9000]
    assert device.read(33, 2) == [9000, 0]


@pytest.mark.parametrize(("address", "count"), [(25, 1), (30, 2), (36, 1), (24, 9), (60000, 1)])
def test_an_address_without_register_is_refused(address: int, count: int) -> None:
    with pytest.raises(IllegalAddress):
        gantry().read(address, count)
    with pytest.raises(IllegalAddress):
        gantry().write(address, [0] * count)


def test_a_write_is_all_or_nothing() -> None:
    device = gantry()
    command = load_map("gantry").register("command").address
    with pytest.raises(IllegalValue, match="target_deg: 400 is outside its hard limits"):
        device.write(command, [1, 0, 40000, 1])
    with pytest.raises(IllegalValue, match="must be written as a whole"):
        device.write(command, [1, 0])
    with pytest.raises(IllegalValue, match="no known code"):
        device.write(command, [9])
    with pytest.raises(IllegalAddress, match="read only"):
        device.write(command, [1, 0, 9000, 1, 1])
    assert device.read(command, 6) == [0] * 6


def test_a_guard_can_refuse_before_anything_is_stored() -> None:
    def busy(values: dict[str, Any]) -> None:
        raise DeviceBusy("not now")

    device = gantry(guard=busy)
    with pytest.raises(DeviceBusy):
        device.write(48, [1])
    assert device.read(48, 1) == [0]


def test_a_request_acts_once_for_each_counter() -> None:
    asked = []

    def handler(values: dict[str, Any]) -> int:
        asked.append(values)
        return 2 if values["target_deg"] == 0 else 0

    device = gantry(requests={"command": handler})
    device.write(48, [1, 0, 9000, 1])
    device.write(48, [1, 0, 9000, 1])
    assert asked == [{"command": 1, "target_deg": 90.0}]
    assert device.read(52, 2) == [1, 0]
    device.write(48, [1, 0, 0, 2])
    assert device.read(52, 2) == [2, 2]
    device.write(49, [0, 18000])
    assert len(asked) == 2


def test_a_setter_sees_the_value_after_it_was_stored() -> None:
    seen: list[tuple[int, int]] = []
    device: RegisterDevice = engine(
        setters={"acknowledged": lambda value: seen.append((value, device.get("acknowledged")))}
    )
    device.write(43, [1, 2])
    assert seen == [(65538, 65538)]


def test_a_binding_to_a_name_that_the_map_lacks_is_refused() -> None:
    with pytest.raises(KeyError, match="no register 'colour'"):
        gantry(getters={"colour": lambda: 0})


def test_a_window_shows_the_rows_that_the_select_register_names() -> None:
    device = RegisterDevice(load_map("electrometer"), identity=IDENTITY, now_ns=lambda: 0)
    device.write(200, [0, 16384, *range(120)])
    assert device.rows("backup", 16384, 2)["limit_counts"].tolist() == [1, 2 << 16 | 3]
    device.write(200, [0, 16385])
    assert device.read(202, 16) == list(range(2, 18))
    assert device.read(200, 4) == [0, 16385, 2, 3]
    assert device.read(203, 2) == [3, 4]


def test_rows_are_checked_and_written_all_or_none() -> None:
    device = engine()
    good = [0, 0, 0, 0, 0, 0, 0, 3]
    with pytest.raises(IllegalValue, match=r"flags, row 1: 4 is outside"):
        device.write(200, [0, 0, *good, *good[:-1], 4])
    assert not device.words("visits").any()
    with pytest.raises(IllegalValue, match="whole rows"):
        device.write(200, [0, 0, *good[:-1]])
    with pytest.raises(IllegalValue, match="has 32768 rows, no row 32768"):
        device.write(200, [0, 32767, *good, *good])
    device.write(200, [0, 32767, *good])
    assert device.rows("visits", 32767, 1)["flags"][0] == 3


def test_a_table_can_refuse_and_is_told_of_what_was_written() -> None:
    told = []

    def check(first: int, count: int) -> None:
        if first < 16384:
            raise DeviceBusy("bank 0 runs")

    device = engine(tables={"visits": TableHooks(check=check, written=lambda *span: told.append(span))})
    with pytest.raises(DeviceBusy):
        device.write(200, [0, 0, *[0] * 8])
    assert device.read(200, 2) == [0, 0]
    device.write(200, [0, 20000, *[0] * 16])
    assert told == [(20000, 2)]


def test_a_ring_wraps_and_is_read_through_its_hook() -> None:
    asked = []
    device = engine()
    rows = np.zeros(6, device.codec("results").dtype)
    rows["visit"] = np.arange(6) + 100
    device.set_rows("results", 32766, rows)
    assert device.rows("results", 0, 4)["visit"].tolist() == [102, 103, 104, 105]
    device.write(360, [0, 32767])
    assert device.read(362, 2) == [0, 101]
    assert device.read(362 + 0, 19 * 2)[19:21] == [0, 102]

    def read(first: int, count: int) -> np.ndarray[Any, Any]:
        asked.append((first, count))
        return rows[:count]

    bound = engine(tables={"results": TableHooks(read=read)})
    bound.write(360, [1, 5])
    words = bound.read(362, 19 * 3)
    assert asked == [(65541, 3)]
    assert_array_equal(bound.codec("results").decode(np.array(words, np.uint16).reshape(3, 19)), rows[:3])
    with pytest.raises(IllegalAddress):
        bound.write(362, [0] * 19)


def test_a_write_only_register_cannot_be_read() -> None:
    text = 'device = "x"\nversion = 1\nregisters = [{ name = "key", address = 30, type = "u16", access = "wo" },\n'
    lines = Path(load_map("gantry").source).read_text("utf-8").splitlines()
    identity = [line for line in lines if "access" in line][:7]
    device = RegisterDevice(parse_map(text + "\n".join(identity) + "]", "x"), identity=IDENTITY, now_ns=lambda: 0)
    device.write(30, [5])
    assert device.get("key") == 5
    with pytest.raises(IllegalAddress, match="write only"):
        device.read(30, 1)
