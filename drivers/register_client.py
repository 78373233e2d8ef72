"""The client side of a register map: named values in and out of a `ModbusPort`, every write read back.

`RegisterDriver` is what the Modbus drivers have in common: name, connection, identity.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.contracts import Identity
from drivers.deadline import Deadline
from drivers.errors import DeviceError, DeviceRefused, LinkLost, ReadbackMismatch
from drivers.registers import (
    FieldCodec,
    LimitError,
    Register,
    RegisterMap,
    Table,
    TableCodec,
    Value,
)
from drivers.verify import Wanted, until
from drivers.wires.modbus_pdu import unpack_words
from drivers.wires.ports import MAX_READ, MAX_WRITE, ModbusPort, RegisterRequest

IDENTITY = ("map_magic", "map_version", "device_id", "simulated", "map_sha256", "boot_nonce", "uptime_s")
ACCEPT_POLL_S = 0.005


class RegisterClient:
    """One device through its map. All methods raise `LinkLost`, `DeviceRefused` or `DeviceError`."""

    def __init__(self, name: str, port: ModbusPort, register_map: RegisterMap) -> None:
        self.name = name
        self.port = port
        self.map = register_map
        self._codecs = {r.name: FieldCodec(r.field) for r in register_map.registers}
        self._tables = {t.name: TableCodec(t) for t in register_map.tables}
        self._readable = {a for r in register_map.registers if r.access != "wo" for a in range(r.address, r.end)}
        self._plans: dict[tuple[str, ...], _ReadPlan] = {}
        self._counters: dict[str, int] = {}
        self._locks = {q.name: asyncio.Lock() for q in register_map.requests}

    async def read(self, names: tuple[str, ...], deadline: Deadline) -> dict[str, Any]:
        """Read registers by name, neighbours in one transaction.

        Raises `DeviceError` for a value outside its hard limits or without a meaning.
        """
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plans[names] = self._plan(names)
        values: dict[str, Any] = {}
        for data, members in zip(await self.port.exchange(plan.requests, deadline), plan.members, strict=True):
            words = unpack_words(data)
            for name, register, read, start, stop in members:
                try:
                    values[name] = read(words[start:stop])
                except LimitError as error:
                    raise DeviceError(
                        self.name, f"read {error} (register {register.address}); check sensor, link and map"
                    ) from error
        return values

    async def write(self, values: Mapping[str, Value], deadline: Deadline) -> None:
        """Write neighbouring registers in one transaction that also reads them back.

        Raises `ReadbackMismatch` if the device does not hold what was written.
        """
        registers = sorted((self.map.register(name) for name in values), key=lambda r: r.address)
        words: list[int] = []
        for register in registers:
            if register.access != "rw" or register.address != registers[0].address + len(words):
                raise DeviceError(self.name, f"{register.name}: not writable together with {registers[0].name}")
            words += self._encode(register.name, values[register.name])
        address = registers[0].address
        back = await self.port.write_read(address, words, address, len(words), deadline)
        self._compare(registers, words, back)

    async def request(self, block_name: str, values: Mapping[str, Value], deadline: Deadline) -> int:
        """Write a request block, read it back in the same transaction, wait until the device judged it.

        Fields not given are 0. Returns the counter. Raises `DeviceRefused` with the device's reason.
        """
        block = self.map.request(block_name)
        registers = [self.map.register(name) for name in (*block.fields, block.counter, block.accepted, block.error)]
        unknown = set(values) - set(block.fields)
        if unknown:
            raise DeviceError(self.name, f"request {block_name} has no fields {sorted(unknown)}")
        async with self._turn(block_name, deadline):
            last = self._counters.pop(block_name, None)
            if last is None:
                last = int((await self.read((block.accepted,), deadline))[block.accepted])
            counter = last % 65535 + 1
            words = [word for name in block.fields for word in self._encode(name, values.get(name, 0))]
            words.append(counter)
            address = registers[0].address
            back = await self.port.write_read(address, words, address, len(words) + 2, deadline)
            self._compare(registers[:-2], words, back)
            accepted, error = back[-2:]
            if accepted != counter:
                echo = await until(
                    self.name,
                    Wanted(f"request {block_name}", f"counter {counter} accepted"),
                    lambda: self.read((block.accepted, block.error), deadline),
                    lambda got: bool(got[block.accepted] == counter),
                    lambda got: f"counter {got[block.accepted]}",
                    poll_s=ACCEPT_POLL_S,
                    deadline=deadline,
                )
                error = int(echo[block.error])
            self._counters[block_name] = counter
        if error:
            reason = self.map.register(block.error).field.label(error)
            asked = ", ".join(f"{name} {value}" for name, value in values.items())
            raise DeviceRefused(self.name, f"request {block_name} ({asked}) was refused: {reason} (error {error})")
        return counter

    async def read_rows(self, table_name: str, first: int, count: int, deadline: Deadline) -> NDArray[np.void]:
        """Rows [first, first + count) of a table as values, a window at a time, never a row more than asked."""
        codec = self._tables[table_name]
        table = codec.table
        self._check_span(table, first, count)
        windows = [
            (first + at, min(table.rows_per_window, count - at)) for at in range(0, count, table.rows_per_window)
        ]
        data = b"".join(await self._read_windows(table, windows, deadline))
        words = np.frombuffer(data, ">u2").reshape(count, codec.row_size)
        try:
            return codec.decode(words)
        except LimitError as error:
            raise DeviceError(self.name, f"read from row {first}: {error}") from error

    async def write_rows(
        self, table_name: str, first: int, rows: NDArray[np.void], deadline: Deadline
    ) -> NDArray[np.uint16]:
        """Write rows, a window per FC16, then read every register back. Returns what lies in the registers.

        Raises `ReadbackMismatch` naming row and column.
        """
        codec = self._tables[table_name]
        table = codec.table
        self._check_span(table, first, len(rows))
        try:
            words = codec.encode(rows)
        except LimitError as error:
            raise DeviceError(self.name, f"not written: {error}") from error
        select = self.map.register(table.select)
        data = words.astype(">u2").tobytes()
        size = table.rows_per_window * codec.row_size * 2
        blocks = [data[at : at + size] for at in range(0, len(data), size)]
        numbers = [first + at for at in range(0, len(rows), table.rows_per_window)]
        writes = [
            RegisterRequest(write_address=select.address, data=row.to_bytes(4, "big") + block)
            for row, block in zip(numbers, blocks, strict=True)
        ]
        await self.port.exchange(writes, deadline)  # all are acknowledged before the first is read back
        windows = [(row, len(block) // (2 * codec.row_size)) for row, block in zip(numbers, blocks, strict=True)]
        read = await self._read_windows(table, windows, deadline)
        for row, block, back in zip(numbers, blocks, read, strict=True):
            if back != block:
                self._raise_row(table, row, unpack_words(block), unpack_words(back))
        return words

    def dtype(self, table_name: str) -> np.dtype[np.void]:
        """Row dtype of a table, as `write_rows` takes and `read_rows` gives it."""
        return self._tables[table_name].dtype

    async def _read_windows(self, table: Table, windows: Sequence[tuple[int, int]], deadline: Deadline) -> list[bytes]:
        """(first row, rows) of each: every request selects its own rows, so none depends on another."""
        select = self.map.register(table.select)
        return await self.port.exchange(
            [
                RegisterRequest(table.address, rows * table.row_size, select.address, row.to_bytes(4, "big"))
                for row, rows in windows
            ],
            deadline,
        )

    @asynccontextmanager
    async def _turn(self, block_name: str, deadline: Deadline) -> AsyncIterator[None]:
        """One request at a time; waiting for the turn counts against the deadline."""
        lock = self._locks[block_name]
        try:
            async with deadline.timeout():
                await lock.acquire()
        except TimeoutError as error:
            raise LinkLost(
                self.name, f"request {block_name}: an earlier one is still under way ({deadline.purpose})"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _plan(self, names: tuple[str, ...]) -> _ReadPlan:
        """Fewest transactions for the registers; gaps are read along only where the map has registers."""
        spans: list[tuple[int, int, list[Register]]] = []
        for register in sorted((self.map.register(name) for name in names), key=lambda r: r.address):
            if register.access == "wo":
                raise DeviceError(self.name, f"{register.name} is write only")
            if spans:
                start, count, members = spans[-1]
                bridge = range(start + count, register.address)
                if register.end - start <= MAX_READ and all(a in self._readable for a in bridge):
                    spans[-1] = (start, register.end - start, [*members, register])
                    continue
            spans.append((register.address, register.field.size, [register]))
        return _ReadPlan(
            requests=tuple(RegisterRequest(start, count) for start, count, _ in spans),
            members=tuple(
                tuple((r.name, r, self._codecs[r.name].read, r.address - start, r.end - start) for r in members)
                for start, _, members in spans
            ),
        )

    def _encode(self, name: str, value: Value) -> tuple[int, ...]:
        try:
            return self._codecs[name].encode(value)
        except LimitError as error:
            raise DeviceError(self.name, f"not written: {error}") from error

    def _compare(self, registers: list[Register], words: list[int], back: list[int]) -> None:
        if back[: len(words)] == words:
            return
        at = 0
        for register in registers:
            size = register.field.size
            wanted, got = words[at : at + size], back[at : at + size]
            at += size
            if wanted != got:
                codec = self._codecs[register.name]
                raise ReadbackMismatch(
                    self.name,
                    f"{register.name}: wanted {codec.decode(wanted)} {register.field.unit} {wanted} (tolerance exact), "
                    f"got {got} in register {register.address}",
                )

    def _raise_row(self, table: Table, first: int, wanted: list[int], got: list[int]) -> None:
        at = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), len(got))
        row, place = divmod(at, table.row_size)
        for column in table.columns:
            if place < column.size:
                start = at - place
                raise ReadbackMismatch(
                    self.name,
                    f"{table.name} row {first + row}, {column.name}: wanted registers "
                    f"{wanted[start : start + column.size]} (tolerance exact), got {got[start : start + column.size]}",
                )
            place -= column.size

    def _check_span(self, table: Table, first: int, count: int) -> None:
        if count < 0 or first < 0 or count > table.capacity or (not table.ring and first + count > table.capacity):
            raise DeviceError(
                self.name, f"{table.name} has {table.capacity} rows; rows {first} to {first + count - 1} were asked for"
            )
        if table.rows_per_window * table.row_size + 2 > MAX_WRITE and table.access == "rw":
            raise DeviceError(self.name, f"{table.name}: window too long for one FC16")

    def forget_counters(self) -> None:
        """After a new connection: ask the device again which request it accepted last."""
        self._counters.clear()


@dataclass(frozen=True, slots=True)
class _ReadPlan:
    """How some registers are read: worked out once."""

    requests: tuple[RegisterRequest, ...]
    members: tuple[tuple[tuple[str, Register, Callable[[list[int]], Value], int, int], ...], ...]
    """Of each request: name, register, decoder, and the first and last (exclusive) of its words in the answer."""


class RegisterDriver:
    """What every Modbus driver shares."""

    def __init__(self, name: str, port: ModbusPort, register_map: RegisterMap, *, poll_s: float = 0.05) -> None:
        self.name = name
        self.map = register_map
        self.link = RegisterClient(name, port, register_map)
        self.poll_s = poll_s
        """Pause between reads while waiting for a read-back."""

    async def connect(self, deadline: Deadline) -> None:
        """Open the link."""
        self.link.forget_counters()
        await self.link.port.connect(deadline)

    async def close(self) -> None:
        """Close the link."""
        await self.link.port.close()

    @property
    def stale_answers(self) -> int:
        """Answers thrown away so far because nobody waited for them."""
        return self.link.port.stale_answers

    async def identify(self, deadline: Deadline) -> Identity:
        """Who answers. Raises `ReadbackMismatch` if its map is of another version.

        Whether id, hash and simulated agree with the site is the caller's to judge.
        """
        got = await self.link.read(IDENTITY, deadline)
        if got["map_version"] != self.map.version:
            raise ReadbackMismatch(
                self.name,
                f"map_version: wanted {self.map.version} ({self.map.source}), got {got['map_version']} "
                f"from {got['device_id']!r}; use the map that belongs to the device",
            )
        return Identity(got["device_id"], got["simulated"], got["map_sha256"], got["boot_nonce"])
