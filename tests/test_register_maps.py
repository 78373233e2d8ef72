"""Register maps: the shipped ones hold together; one that could not work is refused with file, line and reason."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from drivers.errors import BadInput
from drivers.register_map import MAX_READ, MAX_WRITE
from drivers.registers import alarms, describe, load_map, parse_map, shipped_maps
from drivers.registers_page import page
from sites.schema import DEVICE_NAMES

MODBUS_MAPS = [name for name in shipped_maps() if load_map(name).wire == "modbus"]


def test_there_is_a_map_for_every_device_of_a_room() -> None:
    devices = {load_map(name).device for name in shipped_maps()}
    of_a_room = {"electrometer" if n.startswith("electrometer") else n for n in DEVICE_NAMES}
    assert devices == of_a_room | {"magnet_supply", "preset_electrometer"}  # the two of step mode


@pytest.mark.parametrize("name", MODBUS_MAPS)
def test_every_modbus_device_begins_with_the_same_identity_block(name: str) -> None:
    identity = [r for r in load_map(name).registers if r.address < 25]
    assert identity == [r for r in load_map("gantry").registers if r.address < 25]
    assert [r.name for r in identity] == [
        "map_magic", "map_version", "device_id", "simulated", "map_sha256", "boot_nonce", "uptime_s",
    ]  # fmt: skip


@pytest.mark.parametrize("name", MODBUS_MAPS)
def test_every_modbus_device_has_a_heartbeat_before_its_status(name: str) -> None:
    beat = load_map(name).register("heartbeat")
    assert beat == load_map("gantry").register("heartbeat")
    assert (beat.address, beat.field.type, beat.access) == (31, "u16", "ro")


@pytest.mark.parametrize("name", MODBUS_MAPS)
def test_nothing_overlaps_and_every_window_fits_one_transaction(name: str) -> None:
    map_ = load_map(name)
    spans = sorted([(r.address, r.end) for r in map_.registers] + [(t.address, t.end) for t in map_.tables])
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for table in map_.tables:
        assert table.end - table.address <= (MAX_READ if table.access == "ro" else MAX_WRITE - 2)
        assert map_.register(table.select).end == table.address


@pytest.mark.parametrize("name", shipped_maps())
def test_every_entry_says_what_it_is(name: str) -> None:
    rows = describe(load_map(name))
    assert rows
    assert [row["name"] for row in rows if not row["description"] and row["name"] != "stop"] == []


def test_the_documentation_is_that_of_the_shipped_maps() -> None:
    document = (Path(__file__).parents[1] / "docs" / "registers.md").read_text("utf-8")
    assert document == page(), "run: python -m drivers.registers_page > docs/registers.md"


LAMP = """\
device = "lamp"
version = 1
registers = [
    { name = "colour", address = 10, type = "u16", access = "rw", description = "a" },
    { name = "light", address = 11, type = "u32", scale = 0.1, unit = "lx", access = "ro", min = 0.0, alarm_max = 9.0 },
    { name = "steps_select", address = 20, type = "u32", access = "rw" },
]
[[tables]]
name = "steps"
select = "steps_select"
address = 22
rows_per_window = 10
capacity = 100
access = "rw"
columns = [ { name = "level", type = "f32" } ]
"""


def test_the_hash_counts_what_matters_on_the_wire_and_nothing_else() -> None:
    lamp = parse_map(LAMP, "lamp.toml")
    assert len(lamp.map_sha256) == 16
    assert parse_map(LAMP.replace('description = "a"', 'description = "b"'), "x").map_sha256 == lamp.map_sha256
    for old, new in (("0.1", "0.2"), ("address = 10", "address = 9"), ("f32", "i32"), ("= 100", "= 50"),
                     ('unit = "lx"', 'unit = "mlx"'), ("version = 1", "version = 2")):  # fmt: skip
        assert parse_map(LAMP.replace(old, new), "x").map_sha256 != lamp.map_sha256, (old, new)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("address = 11", "address = 10", r"lamp.toml, line 5: light: address 10 overlaps colour, which reaches to 10"),
        ("scale = 0.1", "scal = 0.1", r"line 5: light: unknown key 'scal'"),
        ("device =", "devise =", r"unknown key 'devise'"),
        ('type = "u32", scale', 'type = "u24", scale', r"line 5: light: type 'u24' is none of"),
        ("rows_per_window = 10", "rows_per_window = 61", r"steps: a window of 122 registers does not fit"),
        ("address = 22", "address = 24", r"select 'steps_select' must be an rw u32 directly before 24"),
        ("min = 0.0", "min = 5.0, max = 1.0", r"lower limit 5.0 is above upper limit 1.0"),
        ('"light"', '"colour"', r"colour: appears twice in registers"),
        ("scale = 0.1", "scale = 0", r"scale must be above 0"),
        ("address = 10,", "address = 65536,", r"address 65536 is outside 0 to 65535"),
        ("version = 1", "version = [", r"not valid TOML"),
        ('access = "rw", description', 'access = "wr", description', r"access must be ro, rw or wo, not 'wr'"),
        ("capacity = 100", "capacity = true", r"capacity must be int, not True"),
        ('type = "f32"', 'type = "f32", scale = 2.0', r"a f32 takes neither scale nor offset"),
    ],
)
def test_a_map_that_could_not_work_is_refused(old: str, new: str, complaint: str) -> None:
    assert old in LAMP
    with pytest.raises(BadInput, match=complaint):
        parse_map(LAMP.replace(old, new, 1), "lamp.toml")


def test_a_request_block_with_a_gap_is_refused() -> None:
    text = Path(load_map("gating").source).read_text("utf-8")
    with pytest.raises(BadInput, match=r"select: its registers must lie without gaps"):
        parse_map(text.replace("address = 51", "address = 60"), "gating.toml")


def test_a_map_is_found_by_name_or_path_and_a_missing_one_names_those_that_exist(tmp_path: Path) -> None:
    path = tmp_path / "lamp.toml"
    path.write_text(LAMP, "utf-8")
    assert load_map(path).device == "lamp"
    with pytest.raises(BadInput, match=r"shipped maps: accelerator, couch"):
        load_map("no_such_map")


def test_a_value_outside_its_alarm_limits_is_reported_in_words() -> None:
    electrometer = load_map("electrometer")
    assert alarms(electrometer, {"temperature_c": 22.0, "pressure_hpa": 1005.0}) == []
    assert alarms(electrometer, {"temperature_c": 31.0}) == [
        "electrometer: temperature_c 31 C is outside 15.0 to 30.0"
    ]  # fmt: skip
