"""A simulated Modbus device made of a register map and a few callables: the server side of any map.

Example, a lamp with one status register, one set-point and a request block::

    lamp = Lamp(now_ns)
    device = RegisterDevice(
        load_map("maps/lamp.toml"),
        identity=DeviceIdentity("SIM-LAMP-1", boot_nonce=7),
        now_ns=now_ns,
        refresh=lamp.update,                            # once before every read and write: brings the model to now
        getters={"brightness_lx": lambda: lamp.lux},    # values in the register's unit, any time it is read
        setters={"colour": lamp.set_colour},            # after a write that covered the register was stored
        requests={"command": lamp.on_command},          # f(values of the block by name) -> error code, 0 accepted
        tables={"steps": TableHooks(check=lamp.may_write, written=lamp.steps_written)},
    )
    device.set("serial_number", 12)          # a register without getter holds what was set or written last
    device.rows("steps", 0, 100)             # table rows as values, a structured array (`device.codec("steps").dtype`)

The identity block, the request counters (`accepted`, `error`) and the select registers are kept here. A request
block runs its handler only when its counter differs from the one accepted last, so that a repeated frame
does nothing. Writes are all or nothing: addresses, access and hard limits are checked first, then `check` of each
table touched and `guard`, and only then is anything stored; setters and handlers must not refuse by exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.registers import (
    MAP_MAGIC,
    FieldCodec,
    LimitError,
    Register,
    RegisterMap,
    RequestBlock,
    Table,
    TableCodec,
    Value,
)
from drivers.wires.ports import IllegalAddress, IllegalValue

Getter = Callable[[], Any]
Setter = Callable[[Any], None]
RequestHandler = Callable[[dict[str, Any]], int]
PLANS_KEPT = 512
BEAT_NS = 10_000_000


def heartbeat(since_boot_ns: int) -> int:
    """What a living device's heartbeat shows: one more every 10 ms."""
    return since_boot_ns // BEAT_NS & 0xFFFF


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What the device says it is."""

    device_id: str
    boot_nonce: int
    """To be chosen anew at every power-up."""


@dataclass(frozen=True, slots=True)
class TableHooks:
    """How a table is bound; without hooks it is plain storage.

    `read(first, count)` gives rows as values (structured array with at least the columns of the table) instead of
    the stored ones. `check(first, count)` may raise `IllegalValue` or `DeviceBusy` before rows are stored.
    `written(first, count)` is called after. Row numbers are those of the wire (a ring's are not reduced).
    """

    read: Callable[[int, int], NDArray[np.void]] | None = None
    check: Callable[[int, int], None] | None = None
    written: Callable[[int, int], None] | None = None


class _TableState:
    """A table's codec, hooks and storage."""

    def __init__(self, table: Table, select: Register, hooks: TableHooks) -> None:
        self.table = table
        self.codec = TableCodec(table)
        self.hooks = hooks
        self.select_address = select.address
        self.words = np.zeros((table.capacity if hooks.read is None else 0, table.row_size), np.uint16)

    def rows_present(self, first: int, count: int) -> int:
        """How many of the rows exist; a ring never ends."""
        return count if self.table.ring else max(0, min(count, self.table.capacity - first))

    def read_words(self, first: int, count: int) -> list[int]:
        """Registers of rows; those beyond the table's end read 0."""
        present = self.rows_present(first, count)
        if self.hooks.read is not None:
            words = self.codec.show(self.hooks.read(first, present)).ravel().tolist()
        elif not self.table.ring:
            words = self.words[first : first + present].ravel().tolist()
        else:
            words = self.words[self.places(first, present)].ravel().tolist()
        return words if present == count else words + [0] * ((count - present) * self.table.row_size)

    def places(self, first: int, count: int) -> NDArray[np.int64]:
        """Where rows lie in the storage."""
        return np.arange(first, first + count) % self.table.capacity


class RegisterDevice:
    """A `RegisterBank` for a map; see the module's example."""

    def __init__(
        self,
        register_map: RegisterMap,
        *,
        identity: DeviceIdentity,
        now_ns: Callable[[], int],
        refresh: Callable[[], None] | None = None,
        getters: Mapping[str, Getter] | None = None,
        setters: Mapping[str, Setter] | None = None,
        requests: Mapping[str, RequestHandler] | None = None,
        tables: Mapping[str, TableHooks] | None = None,
        guard: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Bind a map.

        `guard(values by name)` sees every write of registers before it is stored and may raise `IllegalValue` or
        `DeviceBusy`. Raises KeyError for a name that the map does not have.
        """
        self.map = register_map
        self._codecs = {r.name: FieldCodec(r.field) for r in register_map.registers}
        self._registers = {r.name: r for r in register_map.registers}
        self._refresh = refresh
        self._guard = guard
        self._setters = dict(setters or {})
        self._handlers = dict(requests or {})
        boot_ns = now_ns()
        self._getters: dict[str, Getter] = {"uptime_s": lambda: (now_ns() - boot_ns) // 1_000_000_000}
        if "heartbeat" in self._registers:
            self._getters["heartbeat"] = lambda: heartbeat(now_ns() - boot_ns)
        self._getters.update(getters or {})
        hooks = dict(tables or {})
        for name in (*self._getters, *self._setters):
            register_map.register(name)
        for name in self._handlers:
            register_map.request(name)
        for name in hooks:
            register_map.table(name)
        self._tables = {
            t.name: _TableState(t, register_map.register(t.select), hooks.get(t.name, TableHooks()))
            for t in register_map.tables
        }
        ends = [r.end for r in register_map.registers] + [t.end for t in register_map.tables]
        self._words = [0] * max(ends)
        self._owner: dict[int, Register | _TableState] = {
            a: r for r in register_map.registers for a in range(r.address, r.end)
        }
        for state in self._tables.values():
            self._owner.update(dict.fromkeys(range(state.table.address, state.table.end), state))
        self._requests: dict[str, RequestBlock] = {q.counter: q for q in register_map.requests}
        self._plans: dict[tuple[int, int], _ReadPlan] = {}
        shown: dict[str, Value] = {
            "map_magic": MAP_MAGIC,
            "map_version": register_map.version,
            "device_id": identity.device_id,
            "simulated": True,
            "map_sha256": register_map.map_sha256,
            "boot_nonce": identity.boot_nonce,
        }
        for name, value in shown.items():
            self.set(name, value)

    def set(self, name: str, value: Value) -> None:
        """Let a register hold a value from now on (saturated to its type). Raises KeyError."""
        register = self._registers[name]
        self._words[register.address : register.end] = self._codecs[name].show(value)

    def get(self, name: str) -> Any:
        """The value that a read would show. Raises KeyError."""
        getter = self._getters.get(name)
        if getter is not None:
            return getter()
        register = self._registers[name]
        return self._codecs[name].decode(self._words[register.address : register.end])

    def codec(self, table: str) -> TableCodec:
        """Codec of a table; its `dtype` is that of `rows`."""
        return self._tables[table].codec

    def words(self, table: str) -> NDArray[np.uint16]:
        """Storage of a table without `read` hook: registers, shape (capacity, row_size), not a copy."""
        return self._tables[table].words

    def rows(self, table: str, first: int, count: int) -> NDArray[np.void]:
        """Rows of a stored table as values (a copy), by their wire numbers."""
        state = self._tables[table]
        return state.codec.decode(state.words[state.places(first, count)], check=False)

    def set_rows(self, table: str, first: int, rows: NDArray[np.void]) -> None:
        """Put rows of values into a stored table, by their wire numbers."""
        state = self._tables[table]
        state.words[state.places(first, len(rows))] = state.codec.encode(rows)

    def read(self, address: int, count: int) -> list[int]:
        """FC03. Raises `IllegalAddress`."""
        plan = self._plans.get((address, count))
        if plan is None:
            plan = self._plan(address, count)
        if self._refresh is not None:
            self._refresh()
        words = self._words
        out = words[plan.start : plan.stop]
        for start, show, getter in plan.shown:
            value = show(getter())
            out[start : start + len(value)] = value
        for start, stop, state, window in plan.tables:
            first = words[state.select_address] << 16 | words[state.select_address + 1]
            out[start:stop] = state.read_words(first, window)
        return out if plan.cut is None else out[plan.cut[0] : plan.cut[1]]

    def _plan(self, address: int, count: int) -> _ReadPlan:
        """What a read of this span consists of; entries cut at its ends are read whole and cut after."""
        owner = self._owner
        for a in range(address, address + count):
            entry = owner.get(a)
            if entry is None:
                raise IllegalAddress(f"{self.map.device}: no register at {a}")
            if isinstance(entry, Register) and entry.access == "wo":
                raise IllegalAddress(f"{self.map.device}: {entry.name} at {a} is write only")
        low, high = address, address + count
        first, last = owner[low], owner[high - 1]
        start = first.address if isinstance(first, Register) else self._row_start(first, low)
        stop = last.end if isinstance(last, Register) else self._row_stop(last, high)
        shown = []
        tables = []
        a = start
        while a < stop:
            entry = owner[a]
            if isinstance(entry, Register):
                getter = self._getters.get(entry.name)
                if getter is not None:
                    shown.append((a - start, self._codecs[entry.name].show, getter))
                a = entry.end
            else:
                end = min(stop, entry.table.end)
                if a != entry.table.address:
                    raise IllegalAddress(f"{self.map.device}: a read of {entry.table.name} starts at its window")
                tables.append((a - start, end - start, entry, (end - a) // entry.table.row_size))
                a = end
        plan = _ReadPlan(
            start=start,
            stop=stop,
            shown=tuple(shown),
            tables=tuple(tables),
            cut=None if (start, stop) == (low, high) else (low - start, high - start),
        )
        if len(self._plans) >= PLANS_KEPT:
            self._plans.clear()
        self._plans[(address, count)] = plan
        return plan

    def _row_start(self, state: _TableState, address: int) -> int:
        return state.table.address if address < state.table.end else address

    def _row_stop(self, state: _TableState, stop: int) -> int:
        size = state.table.row_size
        rows = -(-(stop - state.table.address) // size)
        return state.table.address + rows * size

    def write(self, address: int, values: Sequence[int]) -> None:
        """FC16. Raises `IllegalAddress`, `IllegalValue`, `DeviceBusy`; all or nothing."""
        end = address + len(values)
        new: dict[str, Any] = {}
        rows: list[tuple[_TableState, int, NDArray[np.uint16]]] = []
        a = address
        selects: dict[int, int] = {}
        while a < end:
            entry = self._owner.get(a)
            if entry is None:
                raise IllegalAddress(f"{self.map.device}: no register at {a}")
            start = a - address
            if isinstance(entry, Register):
                if entry.access == "ro":
                    raise IllegalAddress(f"{self.map.device}: {entry.name} is read only")
                if a != entry.address or entry.end > end:
                    raise IllegalValue(f"{self.map.device}: {entry.name} must be written as a whole")
                try:
                    new[entry.name] = self._codecs[entry.name].read(values[start : start + entry.field.size])
                except LimitError as error:
                    raise IllegalValue(f"{self.map.device}: {error}") from error
                selects[entry.address] = new[entry.name]
                a = entry.end
            else:
                size = entry.table.row_size
                stop = min(end, entry.table.end)
                if entry.table.access == "ro" or entry.hooks.read is not None:
                    raise IllegalAddress(f"{self.map.device}: {entry.table.name} is read only")
                if a != entry.table.address or (stop - a) % size:
                    raise IllegalValue(
                        f"{self.map.device}: {entry.table.name} takes whole rows from its window's start"
                    )
                first = selects.get(entry.select_address)
                if first is None:
                    first = self._words[entry.select_address] << 16 | self._words[entry.select_address + 1]
                rows.append((entry, int(first), self._table_words(entry, int(first), values[start : start + stop - a])))
                a = stop
        if self._refresh is not None:
            self._refresh()
        for state, first, words in rows:
            if state.hooks.check is not None:
                state.hooks.check(first, len(words))
        if self._guard is not None and new:
            self._guard(new)
        for name in new:
            register = self._registers[name]
            self._words[register.address : register.end] = values[register.address - address : register.end - address]
        for state, first, words in rows:
            if state.table.ring:
                state.words[state.places(first, len(words))] = words
            else:
                state.words[first : first + len(words)] = words
        self._run(new, rows)

    def _table_words(self, state: _TableState, first: int, values: Sequence[int]) -> NDArray[np.uint16]:
        """New rows, checked against the table's end and the columns' limits."""
        words = np.array(values, np.uint16).reshape(-1, state.table.row_size)
        if state.rows_present(first, len(words)) < len(words):
            last = first + len(words) - 1
            raise IllegalValue(f"{self.map.device}: {state.table.name} has {state.table.capacity} rows, no row {last}")
        try:
            state.codec.check(words)
        except LimitError as error:
            raise IllegalValue(f"{self.map.device}: {error}") from error
        return words

    def _run(self, new: dict[str, Any], rows: list[tuple[_TableState, int, NDArray[np.uint16]]]) -> None:
        """What a stored write sets off: setters, table hooks, request handlers."""
        for name, value in new.items():
            setter = self._setters.get(name)
            if setter is not None:
                setter(value)
        for state, first, words in rows:
            if state.hooks.written is not None:
                state.hooks.written(first, len(words))
        for name, counter in new.items():
            block = self._requests.get(name)
            if block is None or counter == self.get(block.accepted):
                continue
            handler = self._handlers.get(block.name)
            error = handler({field: self.get(field) for field in block.fields}) if handler is not None else 0
            self.set(block.error, error)
            self.set(block.accepted, counter)


@dataclass(frozen=True, slots=True)
class _ReadPlan:
    """A span of addresses, taken apart once."""

    start: int
    stop: int
    shown: tuple[tuple[int, Callable[[Any], tuple[int, ...]], Getter], ...]
    tables: tuple[tuple[int, int, _TableState, int], ...]
    cut: tuple[int, int] | None
