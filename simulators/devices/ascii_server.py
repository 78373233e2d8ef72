"""Answers ASCII lines from a `LineDevice`: the device's end of the protocol in `drivers.wires.serial_line`."""

from __future__ import annotations

import asyncio
import logging

from drivers.wires.faults import FaultGate, FaultKind, WireFault, WireFaults
from drivers.wires.ports import DeviceBusy, IllegalAddress, IllegalValue, LineDevice
from drivers.wires.serial_line import ECHO_COMMAND, Line, LineBuffer, LineKind, decode_line, encode_line
from simulators.devices.served_wire import ServedWire

log = logging.getLogger("spotwise.simulators.wires")

MAX_REASON = 200


class LineServer(asyncio.Protocol):
    """Broken lines get no answer; refusals carry the same codes as Modbus exceptions (2, 3, 6; 4: device failed)."""

    def __init__(self, device: LineDevice, wire: ServedWire, faults: WireFaults | None) -> None:
        self._device = device
        self._wire = wire
        self._faults = faults
        self._frozen: tuple[WireFault, dict[str, Line]] | None = None
        self._buffer = LineBuffer()
        self._transport: asyncio.Transport | None = None
        self._requests = FaultGate(faults, wire.address, "request", self._received)
        self._replies = FaultGate(faults, wire.address, "reply", self._write_out)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._requests.close()
        self._replies.close()

    def data_received(self, data: bytes) -> None:
        self._requests.push(data)

    def _received(self, data: bytes) -> None:
        for line in self._buffer.feed(data):
            if line.kind is LineKind.REQUEST:
                self._wire.requests += 1
                self._replies.push(self._answer(line))
        self._wire.garbage = self._buffer.broken

    def _write_out(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _answer(self, request: Line) -> bytes:
        """The answer, as the faults of this wire let the device give it."""
        now_ns = round(asyncio.get_running_loop().time() * 1e9)
        fault = None if self._faults is None else self._faults.answering(self._wire.address, now_ns)
        if fault is None or request.text.startswith(ECHO_COMMAND):
            return self._own_answer(request)
        if fault.kind is FaultKind.EXCEPTION:
            return encode_line(Line(LineKind.REFUSAL, request.sequence, f"{fault.code},fault"))
        if fault.kind is FaultKind.WRONG_UNIT:
            return self._own_answer(Line(request.kind, request.sequence ^ 1, request.text))
        if self._frozen is None or self._frozen[0] is not fault:
            self._frozen = (fault, {})
        own = decode_line(self._own_answer(request).rstrip(b"\n"))
        assert own is not None
        first = self._frozen[1].setdefault(request.text, own)
        return encode_line(Line(first.kind, request.sequence, first.text))

    def _own_answer(self, request: Line) -> bytes:
        try:
            if request.text.startswith(ECHO_COMMAND):
                text = request.text[len(ECHO_COMMAND) :]
            else:
                text = self._device.answer(request.text)
            return encode_line(Line(LineKind.ANSWER, request.sequence, text))
        except IllegalAddress as exc:
            return self._refusal(request, 2, exc)
        except IllegalValue as exc:
            return self._refusal(request, 3, exc)
        except DeviceBusy as exc:
            return self._refusal(request, 6, exc)
        except Exception as exc:  # boundary: a failing device must answer as one (code 4), and the reason must be seen
            self._wire.failures += 1
            log.exception("%s: the simulated device failed on command %r", self._wire.address, request.text)
            return self._refusal(request, 4, exc)

    def _refusal(self, request: Line, code: int, exc: Exception) -> bytes:
        """Give the reason, with what the protocol reserves or cannot carry replaced."""
        reason = "".join(char if " " <= char <= "~" and char not in ":;!*" else "_" for char in str(exc))
        return encode_line(Line(LineKind.REFUSAL, request.sequence, f"{code},{reason[:MAX_REASON]}"))
