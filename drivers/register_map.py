"""What a register map says, as frozen values: fields, registers, request blocks, windowed tables, line commands.

A map is data. A control engineer replaces it to connect another device; no Python changes. `drivers.register_file`
reads it from TOML and checks it, `drivers.register_codec` turns values into 16-bit registers and back.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

MAX_READ = 125
"""Registers that one Modbus read can return (Modbus Application Protocol V1.1b3, section 6.3)."""
MAX_WRITE = 123
"""Registers that one FC16 can write (section 6.12)."""

NUMBER_TYPES = {"bool": 1, "u16": 1, "i16": 1, "u32": 2, "i32": 2, "f32": 2, "u64": 4, "i64": 4, "f64": 4}
"""Registers that each number type takes."""

_ASCII = re.compile(r"ascii\[(\d+)\]")

Access = Literal["ro", "rw", "wo"]
WordOrder = Literal["big", "little"]
Value = int | float | bool | str
"""What a register holds once decoded."""


@lru_cache(maxsize=256)
def ascii_length(type_name: str) -> int | None:
    """Characters of an `ascii[n]` type, None for any other."""
    match = _ASCII.fullmatch(type_name)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Field:
    """One value as it lies in registers: value = raw x scale + offset."""

    name: str
    type: str
    word_order: WordOrder = "big"
    """Order of the 16-bit words of a longer value; bytes inside a word are big-endian, as Modbus has them."""
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    minimum: float | None = None
    """Hard limit: a smaller value is never written, and reading one is an error."""
    maximum: float | None = None
    alarm_minimum: float | None = None
    """A value below is legal, and worth a warning."""
    alarm_maximum: float | None = None
    values: tuple[tuple[int, str], ...] = ()
    """Codes and their meaning; if given, any other code is an error."""
    description: str = ""

    @property
    def size(self) -> int:
        """Number of 16-bit registers."""
        length = ascii_length(self.type)
        return NUMBER_TYPES[self.type] if length is None else length // 2

    @property
    def scaled(self) -> bool:
        """True where the value is not the raw number."""
        return self.scale != 1.0 or self.offset != 0.0

    def label(self, code: int) -> str:
        """Meaning of a code; a number without a meaning is shown as itself."""
        return dict(self.values).get(code, str(code))

    def code(self, label: str) -> int:
        """Code of a meaning. Raises KeyError."""
        for code, text in self.values:
            if text == label:
                return code
        raise KeyError(label)


@dataclass(frozen=True, slots=True)
class Register:
    """A field at an address of its own."""

    field: Field
    address: int
    access: Access

    @property
    def name(self) -> str:
        """Name of the field."""
        return self.field.name

    @property
    def end(self) -> int:
        """First address after it."""
        return self.address + self.field.size


@dataclass(frozen=True, slots=True)
class RequestBlock:
    """Registers that are written in one FC16 and take effect together.

    The last one is a counter: the device acts when it differs from the counter it accepted last, so a
    repeated frame does nothing. It then shows that counter in `accepted`, and in `error` 0 or why it refused.
    `accepted` and `error` lie directly behind, so that one FC23 writes the block and reads all of it back.
    """

    name: str
    fields: tuple[str, ...]
    """Registers between the first and the counter, in order of address."""
    counter: str
    accepted: str
    error: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Many equal rows behind a window of a few: a select register (u32, first row shown) and then the window."""

    name: str
    select: str
    """Name of the select register; it lies directly before the window."""
    address: int
    """First register of the window."""
    columns: tuple[Field, ...]
    rows_per_window: int
    capacity: int
    """Rows that exist. A ring's row n lies at n modulo capacity."""
    ring: bool
    access: Access
    description: str = ""

    @property
    def row_size(self) -> int:
        """Registers in a row."""
        return sum(column.size for column in self.columns)

    @property
    def end(self) -> int:
        """First address after the window."""
        return self.address + self.row_size * self.rows_per_window


@dataclass(frozen=True, slots=True)
class LineField:
    """One argument or answer of a line command: a word between blanks."""

    name: str
    type: Literal["text", "integer", "decimal", "bool"]
    decimals: int = 0
    """Digits after the point of a decimal."""
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    optional: bool = False
    """May be `-`: keep as it is."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class LineCommand:
    """One command of an ASCII device: its word, its arguments, its answer."""

    name: str
    send: str
    arguments: tuple[LineField, ...] = ()
    answer: tuple[LineField, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class RegisterMap:
    """Everything that can be said to one kind of device."""

    device: str
    version: int
    title: str
    wire: Literal["modbus", "ascii"]
    source: str
    """File that it was read from, for messages."""
    notes: str = ""
    """What the registers cannot say: how the device behaves."""
    registers: tuple[Register, ...] = ()
    """In order of address."""
    requests: tuple[RequestBlock, ...] = ()
    tables: tuple[Table, ...] = ()
    commands: tuple[LineCommand, ...] = ()

    def register(self, name: str) -> Register:
        """A register by name. Raises KeyError that names the map."""
        for register in self.registers:
            if register.field.name == name:
                return register
        raise KeyError(f"{self.source} has no register {name!r}")

    def table(self, name: str) -> Table:
        """A table by name. Raises KeyError that names the map."""
        for table in self.tables:
            if table.name == name:
                return table
        raise KeyError(f"{self.source} has no table {name!r}")

    def request(self, name: str) -> RequestBlock:
        """A request block by name. Raises KeyError that names the map."""
        for request in self.requests:
            if request.name == name:
                return request
        raise KeyError(f"{self.source} has no request block {name!r}")

    def command(self, name: str) -> LineCommand:
        """A line command by name. Raises KeyError that names the map."""
        for command in self.commands:
            if command.name == name:
                return command
        raise KeyError(f"{self.source} has no command {name!r}")

    @property
    def map_sha256(self) -> str:
        """First 16 hex digits of the SHA-256 of all that matters on the wire.

        Words for people (title, descriptions) and the order in the file do not count: correcting a sentence
        must not make device and controller strangers.
        """
        content = {
            "device": self.device,
            "version": self.version,
            "wire": self.wire,
            "registers": [[r.address, r.access, *_wire_field(r.field)] for r in self.registers],
            "requests": sorted([q.name, *q.fields, q.counter, q.accepted, q.error] for q in self.requests),
            "tables": sorted(
                (
                    [t.name, t.select, t.address, t.rows_per_window, t.capacity, t.ring, t.access]
                    + [_wire_field(c) for c in t.columns]
                    for t in self.tables
                ),
                key=lambda row: str(row[0]),
            ),
            "commands": sorted(
                (
                    [c.name, c.send, [_wire_line(f) for f in c.arguments], [_wire_line(f) for f in c.answer]]
                    for c in self.commands
                ),
                key=lambda row: str(row[0]),
            ),
        }
        text = json.dumps(content, separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def _wire_field(field: Field) -> list[Any]:
    limits = [field.minimum, field.maximum, field.alarm_minimum, field.alarm_maximum]
    return [
        field.name,
        field.type,
        field.word_order,
        float(field.scale),
        float(field.offset),
        field.unit,
        *(None if limit is None else float(limit) for limit in limits),
        [list(pair) for pair in field.values],
    ]


def _wire_line(field: LineField) -> list[Any]:
    limits = [None if limit is None else float(limit) for limit in (field.minimum, field.maximum)]
    return [field.name, field.type, field.decimals, field.unit, *limits, field.optional]
