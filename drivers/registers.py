"""Register maps for everyone else: load one, describe one, find what is in an alarming state.

    gantry = load_map("gantry")
    gantry.map_sha256              # what the device must report too
    for row in describe(gantry): ...

A map that is not shipped is loaded by its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivers.register_codec import FieldCodec, LimitError, TableCodec, limit_text, registers_crc32
from drivers.register_file import MAPS, load_map, parse_map
from drivers.register_map import Field, LineField, Register, RegisterMap, RequestBlock, Table, Value

__all__ = [
    "MAP_MAGIC",
    "Field",
    "FieldCodec",
    "LimitError",
    "Register",
    "RegisterMap",
    "RequestBlock",
    "Table",
    "TableCodec",
    "Value",
    "alarms",
    "describe",
    "load_map",
    "parse_map",
    "registers_crc32",
    "shipped_maps",
]

MAP_MAGIC = 0x5357
"""First register of every Modbus device: ASCII `SW`."""


def shipped_maps() -> tuple[str, ...]:
    """Names of the maps in drivers/maps."""
    return tuple(sorted(path.stem for path in MAPS.glob("*.toml")))


def describe(register_map: RegisterMap) -> list[dict[str, Any]]:
    """One row per register, table column, command argument and answer, in order of address.

    Keys: kind (register, table, argument, answer), name, address (None on an ASCII line; in a table: of the
    window's first row), registers, type, access, unit, scale, offset, minimum, maximum, alarm_minimum,
    alarm_maximum, values, description.
    """
    rows = [(r.address, _field_row("register", r.name, r.address, r.access, r.field)) for r in register_map.registers]
    for table in register_map.tables:
        address = table.address
        for column in table.columns:
            row = _field_row("table", f"{table.name}.{column.name}", address, table.access, column)
            rows.append((address, row))
            address += column.size
    rows.sort(key=lambda pair: pair[0])
    result = [row for _, row in rows]
    for command in register_map.commands:
        for kind, fields in (("argument", command.arguments), ("answer", command.answer)):
            result += [_line_row(kind, f"{command.name}.{f.name}", command.send, f) for f in fields]
        if not command.arguments and not command.answer:
            result.append(_line_row("command", command.name, command.send, LineField(command.name, "text")))
    return result


def alarms(register_map: RegisterMap, values: Mapping[str, Value]) -> list[str]:
    """A sentence for each value outside its alarm limits; the value itself is still legal."""
    found = []
    for name, value in values.items():
        field = register_map.register(name).field
        if isinstance(value, str):
            continue
        low, high = field.alarm_minimum, field.alarm_maximum
        if (low is not None and value < low) or (high is not None and value > high):
            found.append(f"{register_map.device}: {name} {value:g} {field.unit} is outside {low} to {high}")
    return found


def _field_row(kind: str, name: str, address: int, access: str, field: Field) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "address": address,
        "registers": field.size,
        "type": field.type if field.word_order == "big" else f"{field.type} little",
        "access": access,
        "unit": field.unit,
        "scale": field.scale,
        "offset": field.offset,
        "minimum": field.minimum,
        "maximum": field.maximum,
        "alarm_minimum": field.alarm_minimum,
        "alarm_maximum": field.alarm_maximum,
        "values": {str(code): label for code, label in field.values},
        "limits": limit_text(field),
        "description": field.description,
    }


def _line_row(kind: str, name: str, send: str, field: LineField) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "address": None,
        "registers": 0,
        "type": f"{field.type}{'.' + str(field.decimals) if field.decimals else ''}",
        "access": send,
        "unit": field.unit,
        "scale": 1.0,
        "offset": 0.0,
        "minimum": field.minimum,
        "maximum": field.maximum,
        "alarm_minimum": None,
        "alarm_maximum": None,
        "values": {},
        "limits": limit_text(field),
        "description": field.description,
    }
