"""Reads a register map from TOML, and refuses one that could not work, naming file, line and reason.

    device = "gantry"          # device class
    version = 1
    wire = "modbus"            # or "ascii"
    registers = [ { name = "angle_deg", address = 40, type = "i32", scale = 0.01, unit = "deg", access = "ro" }, ... ]
    requests = [ { name = "move", first = "target_deg", counter = "move_counter", accepted = ..., error = ... } ]
    tables = [ { name = "visits", select = "visits_select", address = 202, rows_per_window = 15, columns = [...] } ]
    commands = [ { name = "stop", send = "STP" } ]          # ascii only

The keys of each entry are those of `drivers.register_map`, with min, max, alarm_min and alarm_max for the limits.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from drivers.errors import BadInput
from drivers.register_map import (
    MAX_READ,
    MAX_WRITE,
    NUMBER_TYPES,
    Field,
    LineCommand,
    LineField,
    Register,
    RegisterMap,
    RequestBlock,
    Table,
    ascii_length,
)

MAPS = Path(__file__).parent / "maps"
ADDRESSES = 65536
SELECT_SIZE = 2

_TOP = {"device", "version", "title", "notes", "wire", "word_order", "registers", "requests", "tables", "commands"}
_FIELD = {
    "name", "type", "word_order", "scale", "offset", "unit", "min", "max", "alarm_min", "alarm_max", "values",
    "description",
}  # fmt: skip
_REQUEST = {"name", "first", "counter", "accepted", "error", "description"}
_TABLE = {"name", "select", "address", "columns", "rows_per_window", "capacity", "ring", "access", "description"}
_COMMAND = {"name", "send", "arguments", "answer", "description"}
_LINE_FIELD = {"name", "type", "decimals", "unit", "min", "max", "optional", "description"}


def load_map(name_or_path: str | Path) -> RegisterMap:
    """The map of that name in drivers/maps, or the file at that path (anything with a slash or `.toml`).

    Raises `BadInput` naming file, line and reason.
    """
    text = str(name_or_path)
    path = Path(text) if "/" in text or text.endswith(".toml") else MAPS / f"{text}.toml"
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(p.stem for p in MAPS.glob("*.toml")))
        raise BadInput(f"register map {path}: cannot be read ({error}); shipped maps: {known}") from error
    return parse_map(content, str(path))


@lru_cache(maxsize=64)
def parse_map(content: str, source: str) -> RegisterMap:
    """A map from TOML text; `source` is its name in messages. Raises `BadInput`."""
    try:
        data = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"register map {source}: not valid TOML: {error}") from error
    return _Reader(source, content.splitlines()).map(data)


class _Reader:
    """One file being read; knows lines, so that every complaint can point at one."""

    def __init__(self, source: str, lines: list[str]) -> None:
        self.source = source
        self.lines = lines

    def fail(self, name: str, message: str) -> BadInput:
        """The error to raise about the entry called `name`."""
        needle = f'"{name}"'
        line = next((i for i, text in enumerate(self.lines, 1) if needle in text or text.startswith(name)), 1)
        return BadInput(f"register map {self.source}, line {line}: {name}: {message}")

    def keys(self, entry: Mapping[str, Any], allowed: set[str], name: str) -> None:
        """Refuse a misspelt key: it would silently leave a limit out."""
        for key in entry:
            if key not in allowed:
                raise self.fail(name, f"unknown key {key!r}; known: {', '.join(sorted(allowed))}")

    def get(self, entry: Mapping[str, Any], key: str, kind: type, name: str, default: Any = ...) -> Any:
        """A value of the right type; a missing one without default is an error."""
        if key not in entry:
            if default is ...:
                raise self.fail(name, f"key {key!r} is missing")
            return default
        value = entry[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.fail(name, f"{key} must be {kind.__name__}, not {value!r}")
        return value

    def names(self, entries: Any, what: str) -> list[Mapping[str, Any]]:
        """A list of tables, each with a unique name."""
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise self.fail(what, "must be a list of tables")
        seen: set[str] = set()
        for entry in entries:
            name = self.get(entry, "name", str, what)
            if not name.isidentifier():
                raise self.fail(name, "a name is letters, digits and underscores")
            if name in seen:
                raise self.fail(name, f"appears twice in {what}")
            seen.add(name)
        return entries

    def map(self, data: Mapping[str, Any]) -> RegisterMap:
        """The whole file."""
        self.keys(data, _TOP, "map")
        device = self.get(data, "device", str, "map")
        wire = self.get(data, "wire", str, device, "modbus")
        if wire not in ("modbus", "ascii"):
            raise self.fail("wire", f"must be modbus or ascii, not {wire!r}")
        version = self.get(data, "version", int, device)
        if not 1 <= version <= 65535:
            raise self.fail("version", f"must be 1 to 65535, not {version}")
        forbidden = ("commands",) if wire == "modbus" else ("registers", "requests", "tables")
        for key in forbidden:
            if key in data:
                raise self.fail(key, f"has no place in a map for the {wire} wire")
        order = self.get(data, "word_order", str, device, "big")
        registers = [self.register(e, order) for e in self.names(data.get("registers", []), "registers")]
        registers.sort(key=lambda r: r.address)
        by_name = {r.name: r for r in registers}
        tables = tuple(self.table(e, order, by_name) for e in self.names(data.get("tables", []), "tables"))
        self.overlaps(registers, tables)
        return RegisterMap(
            device=device,
            version=version,
            title=self.get(data, "title", str, device, ""),
            wire=wire,
            source=self.source,
            notes=self.get(data, "notes", str, device, "").strip(),
            registers=tuple(registers),
            requests=tuple(self.request(e, registers) for e in self.names(data.get("requests", []), "requests")),
            tables=tables,
            commands=tuple(self.command(e) for e in self.names(data.get("commands", []), "commands")),
        )

    def field(self, entry: Mapping[str, Any], default_order: str) -> Field:
        """The part that registers and columns have in common."""
        name = self.get(entry, "name", str, "register")
        kind = self.get(entry, "type", str, name)
        length = ascii_length(kind)
        if kind not in NUMBER_TYPES and length is None:
            raise self.fail(name, f"type {kind!r} is none of {', '.join(NUMBER_TYPES)}, ascii[n]")
        if length is not None and (length % 2 or not 2 <= length <= 64):
            raise self.fail(name, f"ascii length must be even and 2 to 64, not {length}")
        order = self.get(entry, "word_order", str, name, default_order)
        if order not in ("big", "little"):
            raise self.fail(name, f"word_order must be big or little, not {order!r}")
        scale = self.get(entry, "scale", float, name, 1.0)
        offset = self.get(entry, "offset", float, name, 0.0)
        limits = [self.get(entry, key, float, name, None) for key in ("min", "max", "alarm_min", "alarm_max")]
        values = self.get(entry, "values", dict, name, {})
        if not scale > 0:
            raise self.fail(name, f"scale must be above 0, not {scale}")
        if kind not in ("u16", "i16", "u32", "i32") and (scale != 1.0 or offset != 0.0):
            raise self.fail(name, f"a {kind} takes neither scale nor offset")
        if (length is not None or kind == "bool") and (values or any(limit is not None for limit in limits)):
            raise self.fail(name, f"a {kind} takes neither limits nor values")
        for low, high in ((limits[0], limits[1]), (limits[2], limits[3])):
            if low is not None and high is not None and low > high:
                raise self.fail(name, f"lower limit {low} is above upper limit {high}")
        codes = []
        for code, label in values.items():
            if not code.isdecimal() or type(label) is not str:
                raise self.fail(name, f'values are written as {{ "0" = "meaning" }}, not {code!r} = {label!r}')
            codes.append((int(code), label))
        return Field(
            name=name,
            type=kind,
            word_order=order,
            scale=scale,
            offset=offset,
            unit=self.get(entry, "unit", str, name, ""),
            minimum=limits[0],
            maximum=limits[1],
            alarm_minimum=limits[2],
            alarm_maximum=limits[3],
            values=tuple(sorted(codes)),
            description=self.get(entry, "description", str, name, ""),
        )

    def register(self, entry: Mapping[str, Any], order: str) -> Register:
        """One scalar."""
        field = self.field(entry, order)
        self.keys(entry, _FIELD | {"address", "access"}, field.name)
        address = self.get(entry, "address", int, field.name)
        access = self.get(entry, "access", str, field.name)
        if access not in ("ro", "rw", "wo"):
            raise self.fail(field.name, f"access must be ro, rw or wo, not {access!r}")
        if not 0 <= address <= ADDRESSES - field.size:
            raise self.fail(field.name, f"address {address} is outside 0 to {ADDRESSES - field.size}")
        return Register(field, address, access)

    def request(self, entry: Mapping[str, Any], registers: list[Register]) -> RequestBlock:
        """A block with its counter and echo; they must touch, or one transaction could not carry them."""
        name = entry["name"]
        self.keys(entry, _REQUEST, name)
        by_name = {r.name: i for i, r in enumerate(registers)}
        places = []
        for key in ("first", "counter", "accepted", "error"):
            wanted = self.get(entry, key, str, name)
            if wanted not in by_name:
                raise self.fail(name, f"{key} names no register: {wanted!r}")
            places.append(by_name[wanted])
        first, counter, accepted, error = places
        block = registers[first : counter + 1]
        if not block or accepted != counter + 1 or error != counter + 2:
            raise self.fail(name, "order must be first .. counter, accepted, error")
        whole = registers[first : error + 1]
        if any(a.end != b.address for a, b in pairwise(whole)):
            raise self.fail(name, "its registers must lie without gaps")
        if whole[-1].end - whole[0].address > MAX_READ - 4:
            raise self.fail(name, f"is longer than one FC23 carries ({MAX_READ - 4} registers)")
        if any(r.access != "rw" for r in block) or any(r.access != "ro" for r in whole[-2:]):
            raise self.fail(name, "the block must be rw, accepted and error ro")
        if any(r.field.type != "u16" or r.field.scaled for r in whole[-3:]):
            raise self.fail(name, "counter, accepted and error must be plain u16")
        return RequestBlock(
            name=name,
            fields=tuple(r.name for r in block[:-1]),
            counter=block[-1].name,
            accepted=whole[-2].name,
            error=whole[-1].name,
            description=self.get(entry, "description", str, name, ""),
        )

    def table(self, entry: Mapping[str, Any], order: str, registers: Mapping[str, Register]) -> Table:
        """A windowed block with its select register."""
        name = entry["name"]
        self.keys(entry, _TABLE, name)
        columns = []
        for column in self.names(self.get(entry, "columns", list, name), f"columns of {name}"):
            self.keys(column, _FIELD, f"{name}.{column['name']}")
            columns.append(self.field(column, order))
        if not columns:
            raise self.fail(name, "has no columns")
        access = self.get(entry, "access", str, name)
        table = Table(
            name=name,
            select=self.get(entry, "select", str, name),
            address=self.get(entry, "address", int, name),
            columns=tuple(columns),
            rows_per_window=self.get(entry, "rows_per_window", int, name),
            capacity=self.get(entry, "capacity", int, name),
            ring=self.get(entry, "ring", bool, name, False),
            access=access,
            description=self.get(entry, "description", str, name, ""),
        )
        if access not in ("ro", "rw"):
            raise self.fail(name, f"access must be ro or rw, not {access!r}")
        if not 1 <= table.rows_per_window <= table.capacity <= 2**31:
            raise self.fail(name, "needs 1 <= rows_per_window <= capacity <= 2^31")
        if table.end > ADDRESSES or table.address < 0:
            raise self.fail(name, f"window {table.address} to {table.end - 1} leaves the address space")
        window = table.end - table.address
        limit = MAX_READ if access == "ro" else MAX_WRITE - SELECT_SIZE
        if window > limit:
            raise self.fail(name, f"a window of {window} registers does not fit one transaction ({limit})")
        select = registers.get(table.select)
        if select is None or select.end != table.address or select.field.type != "u32" or select.access != "rw":
            raise self.fail(name, f"select {table.select!r} must be an rw u32 directly before {table.address}")
        if select.field.word_order != "big" or select.field.scaled:
            raise self.fail(name, "select must be a plain big-endian u32")
        return table

    def overlaps(self, registers: Iterable[Register], tables: Iterable[Table]) -> None:
        """No two entries may share an address."""
        spans = [(r.address, r.end, r.name) for r in registers] + [(t.address, t.end, t.name) for t in tables]
        spans.sort()
        for (_, end, before), (address, _, name) in pairwise(spans):
            if address < end:
                raise self.fail(name, f"address {address} overlaps {before}, which reaches to {end - 1}")

    def command(self, entry: Mapping[str, Any]) -> LineCommand:
        """One line command."""
        name = entry["name"]
        self.keys(entry, _COMMAND, name)
        send = self.get(entry, "send", str, name)
        if not (send.isascii() and send.isalnum()):
            raise self.fail(name, f"send must be one ASCII word, not {send!r}")
        return LineCommand(
            name=name,
            send=send,
            arguments=tuple(self.line_field(e) for e in self.names(entry.get("arguments", []), name)),
            answer=tuple(self.line_field(e) for e in self.names(entry.get("answer", []), name)),
            description=self.get(entry, "description", str, name, ""),
        )

    def line_field(self, entry: Mapping[str, Any]) -> LineField:
        """One word of a command or an answer."""
        name = entry["name"]
        self.keys(entry, _LINE_FIELD, name)
        kind = self.get(entry, "type", str, name)
        if kind not in ("text", "integer", "decimal", "bool"):
            raise self.fail(name, f"type {kind!r} is none of text, integer, decimal, bool")
        return LineField(
            name=name,
            type=kind,
            decimals=self.get(entry, "decimals", int, name, 0),
            unit=self.get(entry, "unit", str, name, ""),
            minimum=self.get(entry, "min", float, name, None),
            maximum=self.get(entry, "max", float, name, None),
            optional=self.get(entry, "optional", bool, name, False),
            description=self.get(entry, "description", str, name, ""),
        )
