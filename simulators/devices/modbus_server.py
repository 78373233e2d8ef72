"""Answers Modbus requests from a `RegisterBank`: the library's servers, with a handler that works at once.

The library brings listening, connections, and the lengths and checksums of serial frames. Its own request handler
starts a task for each request, asks a data store, and forgets a second request that arrives in the same piece; ours
cuts requests out of the bytes itself and answers them in the callback that received them.
`tests/test_wire_servers.py` pins what is overridden.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from pymodbus.framer.rtu import FramerRTU
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.server.requesthandler import ServerRequestHandler
from pymodbus.simulator import DataType, SimData, SimDevice

from drivers.wires.faults import FaultGate, FaultKind, WireFault, WireFaults
from drivers.wires.modbus_pdu import (
    EXCEPTION,
    FC_DIAGNOSTICS,
    FC_READ,
    FC_WRITE,
    FC_WRITE_ONE,
    FC_WRITE_READ,
    READ,
    TCP_HEAD,
    pack_words,
    read_span,
    tcp_frame,
    written_and_read,
    written_words,
)
from drivers.wires.ports import (
    MAX_READ,
    MAX_WRITE,
    MAX_WRITE_READ,
    DeviceBusy,
    IllegalAddress,
    IllegalValue,
    RegisterBank,
)
from simulators.devices.frozen import FrozenBank
from simulators.devices.served_wire import ServedWire

log = logging.getLogger("spotwise.simulators.wires")

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, DEVICE_FAILURE, DEVICE_BUSY = 1, 2, 3, 4, 6

RTU_SILENCE_S = 0.05
"""A gap that ends an unfinished RTU frame. The standard says 3.5 characters; a pty on a busy PC needs more."""


def answer(bank: RegisterBank, message: bytes) -> bytes:
    """Answer one request message from a bank; the bank's refusals become Modbus exceptions 2, 3 and 6.

    Functions: 3 read, 6 write one, 16 write, 23 write and read, 8/0 echo; others are illegal (1).
    Raises whatever else the bank raises, and ValueError if it returns registers that do not fit.
    """
    function = message[0]
    try:
        if function == FC_READ:
            return _read(bank, function, *read_span(message))
        if function == FC_WRITE:
            address, values = written_words(message)
            _write(bank, address, values, MAX_WRITE)
            return message[: READ.size]
        if function == FC_WRITE_READ:
            address, values, read_address, count = written_and_read(message)
            _write(bank, address, values, MAX_WRITE_READ)
            return _read(bank, function, read_address, count)
        if function == FC_WRITE_ONE:
            address, value = read_span(message)
            _write(bank, address, [value] if len(message) == READ.size else [], 1)
            return message
        if function == FC_DIAGNOSTICS and message[1:3] == b"\0\0" and len(message) > 3:
            return message
    except IllegalAddress:
        return _refusal(function, ILLEGAL_ADDRESS)
    except IllegalValue:
        return _refusal(function, ILLEGAL_VALUE)
    except DeviceBusy:
        return _refusal(function, DEVICE_BUSY)
    return _refusal(function, ILLEGAL_FUNCTION)


def _refusal(function: int, code: int) -> bytes:
    return bytes((function | EXCEPTION, code))


def _read(bank: RegisterBank, function: int, address: int, count: int) -> bytes:
    if not 1 <= count <= MAX_READ:
        raise IllegalValue(f"count {count}")
    if address + count > 0x10000:
        raise IllegalAddress(f"{address} + {count}")
    registers = bank.read(address, count)
    if len(registers) != count:
        raise ValueError(f"the bank's answer to {count} registers from {address} does not fit: {registers}")
    try:
        return bytes((function, 2 * count)) + pack_words(registers)
    except struct.error as exc:
        raise ValueError(f"the bank's answer to registers from {address} does not fit: {registers}") from exc


def _write(bank: RegisterBank, address: int, values: list[int], limit: int) -> None:
    if not 1 <= len(values) <= limit:  # also a request whose counts disagree: it decodes to no values
        raise IllegalValue(f"{len(values)} values")
    if address + len(values) > 0x10000:
        raise IllegalAddress(f"{address} + {len(values)}")
    bank.write(address, values)


class _BankHandler(ServerRequestHandler):
    """One connection, or one serial line: bytes in, requests cut out, answers out."""

    def __init__(self, owner: BankTcpServer | BankRtuServer) -> None:
        super().__init__(owner, None, None, None)  # type: ignore[no-untyped-call]
        self._bank = owner.bank
        self._wire = owner.wire
        self._faults = owner.faults
        self._rest = b""
        self._collected: list[bytes] | None = None
        self._other_unit = 0
        self._requests = FaultGate(owner.faults, owner.wire.address, "request", self._received)
        self._replies = FaultGate(owner.faults, owner.wire.address, "reply", self._write_out)

    def data_received(self, data: bytes) -> None:
        """Bypass the library's buffer, which holds one request and forgets the next."""
        self._requests.push(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._requests.close()
        self._replies.close()
        super().connection_lost(exc)

    def close(self, reconnect: bool = False) -> None:
        self._requests.close()
        self._replies.close()
        super().close(reconnect)

    def _received(self, data: bytes) -> None:
        raise NotImplementedError

    def _write_out(self, frame: bytes) -> None:
        if self._collected is not None:
            self._collected.append(frame)
        elif self.transport is not None:
            self.transport.write(frame)  # type: ignore[attr-defined]

    def _answer(self, message: bytes) -> bytes:
        """Answer one request; a failing device is exception 4."""
        self._wire.requests += 1
        fault = None if self._faults is None else self._faults.answering(self._wire.address, self._now_ns())
        self._other_unit = 0
        bank = self._bank
        if fault is not None:
            if fault.kind is FaultKind.EXCEPTION:
                return _refusal(message[0] & ~EXCEPTION, fault.code)
            if fault.kind is FaultKind.WRONG_UNIT:
                self._other_unit = 1
            else:
                bank = self._frozen_bank(fault)
        try:
            return answer(bank, message)
        except Exception:  # boundary: a failing device must answer as one (exception 4), and the reason must be seen
            self._wire.failures += 1
            log.exception("%s: the simulated device failed on request %s", self._wire.address, message.hex(" "))
            return _refusal(message[0] & ~EXCEPTION, DEVICE_FAILURE)

    def _now_ns(self) -> int:
        return round(self.loop.time() * 1e9)

    def _frozen_bank(self, fault: WireFault) -> RegisterBank:
        """What the bank reads like while a fault freezes it, on all its connections."""
        if self._wire.frozen is None or self._wire.frozen.fault is not fault:
            self._wire.frozen = FrozenBank(self._bank, fault)
        return self._wire.frozen


class _TcpHandler(_BankHandler):
    """Modbus TCP: any unit id is answered; bytes that cannot be a header close the connection."""

    def _received(self, data: bytes) -> None:
        """Answers to requests that came in one piece go out in one piece."""
        rest = self._rest + data if self._rest else data
        at = 0
        collected: list[bytes] = []
        self._collected = collected
        while len(rest) - at >= 8:
            transaction, protocol, length, unit = TCP_HEAD.unpack_from(rest, at)
            if protocol or not 2 <= length <= 254:
                self._wire.garbage += 1
                log.warning("%s: closed a connection that sent %s", self._wire.address, rest[at : at + 16].hex(" "))
                at = -1
                break
            end = at + 6 + length
            if len(rest) < end:
                break
            message = self._answer(rest[at + 7 : end])
            self._replies.push(tcp_frame(transaction, unit ^ self._other_unit, message))
            at = end
        self._collected = None
        if collected and self.transport is not None:
            self.transport.write(b"".join(collected))  # type: ignore[attr-defined]
        if at < 0 and self.transport is not None:
            self.transport.close()
        self._rest = rest[at:] if at >= 0 else b""


class _RtuHandler(_BankHandler):
    """Modbus RTU: other units and broken frames get no answer; a silence ends an unfinished frame."""

    _last_s = 0.0

    def _received(self, data: bytes) -> None:
        now_s = self.loop.time()
        if self._rest and now_s - self._last_s > RTU_SILENCE_S:
            self._wire.garbage += 1
            self._rest = b""
        self._last_s = now_s
        rest = self._rest + data
        unit = self.server.unit
        if len(rest) < 4:
            self._rest = rest
            return
        if FramerRTU.check_CRC(rest[:-2], int.from_bytes(rest[-2:], "big")):  # one whole frame, the usual case
            self._rest = b""
            if rest[0] == unit:
                self._serve(rest[1:-2])
            return
        at = _frame_inside(rest, unit, self.framer.decoder)
        if at is not None:
            self._wire.garbage += 1
            start, end = at
            self._rest = rest[end:]
            self._serve(rest[start + 1 : end - 2])
        elif len(rest) > FramerRTU.MAX_SIZE:
            self._wire.garbage += 1
            self._rest = b""
        else:
            self._rest = rest

    def _serve(self, message: bytes) -> None:
        answered = self._answer(message)
        frame = bytes((self.server.unit ^ self._other_unit,)) + answered
        self._replies.push(frame + FramerRTU.compute_CRC(frame).to_bytes(2, "big"))


def _frame_inside(data: bytes, unit: int, decoder: Any) -> tuple[int, int] | None:
    """Find a whole frame for this unit behind or before other bytes."""
    for start in range(len(data) - 3):
        if data[start] != unit:
            continue
        kind = decoder.lookupPduClass(data[start:])
        if kind is None or not (kind.rtu_frame_size or kind.rtu_byte_count_pos):
            continue
        size = kind.calculateRtuFrameSize(data[start:])
        end = start + size
        if (
            size
            and end <= len(data)
            and FramerRTU.check_CRC(data[start : end - 2], int.from_bytes(data[end - 2 : end], "big"))
        ):
            return start, end
    return None


def _no_store() -> SimDevice:
    """Satisfy the library, which wants a data store; ours is the bank, and the handler asks it directly."""
    return SimDevice(0, simdata=[SimData(0, count=1, values=0, datatype=DataType.REGISTERS)])


class BankTcpServer(ModbusTcpServer):
    """The library's TCP server with our handler."""

    def __init__(self, bank: RegisterBank, wire: ServedWire, faults: WireFaults | None) -> None:
        super().__init__(_no_store(), address=(wire.host, wire.port))
        self.bank = bank
        self.wire = wire
        self.faults = faults

    def callback_new_connection(self) -> ServerRequestHandler:
        return _TcpHandler(self)


class BankRtuServer(ModbusSerialServer):
    """The library's serial server with our handler, on a line that we open."""

    def __init__(
        self,
        bank: RegisterBank,
        wire: ServedWire,
        unit: int,
        open_line: Callable[[Callable[[], Any]], Coroutine[Any, Any, tuple[Any, Any]]],
        faults: WireFaults | None,
    ) -> None:
        super().__init__(_no_store(), port=wire.path)
        self.bank = bank
        self.wire = wire
        self.unit = unit
        self.faults = faults
        self.call_create = partial(open_line, self.handle_new_connection)

    def callback_new_connection(self) -> ServerRequestHandler:
        return _RtuHandler(self)
