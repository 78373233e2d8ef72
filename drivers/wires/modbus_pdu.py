"""Modbus messages of the functions that carry all traffic, as bytes: function code and data, without a wire's framing.

Packed in one go, because a treatment sends ten thousand of them. Nothing here raises on what was received: an answer
that cannot be one is described in words (`answer_fault`), a request that cannot be one gives no registers.
Layouts: Modbus Application Protocol 1.1b3, 6.3, 6.12, 6.17; TCP header: Modbus Messaging on TCP/IP 1.0b, 3.1.3.
`tests/test_modbus_pdu.py` holds every message against the library's, byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from drivers.wires.ports import MAX_READ, MAX_WRITE, MAX_WRITE_READ, RegisterRequest

FC_READ = 3
FC_WRITE_ONE = 6
FC_DIAGNOSTICS = 8
FC_WRITE = 16
FC_WRITE_READ = 23
EXCEPTION = 0x80
"""Set in the function code of an exception response, whose one byte of data is the exception code."""

EXCEPTION_NAMES = {
    1: "illegal function",
    2: "illegal address",
    3: "illegal value",
    4: "device failure",
    5: "acknowledged, still working",
    6: "device busy",
    10: "gateway path unavailable",
    11: "gateway got no answer",
}

TCP_HEAD = struct.Struct(">HHHB")
"""Transaction id, protocol id (0), length of what follows it, unit id; the message comes next."""

READ = struct.Struct(">BHH")
"""FC03 request: function, first register, count. FC16 response: the same, of what was written."""
WRITE = struct.Struct(">BHHB")
"""FC16 request: function, first register, count, bytes; then the registers."""
WRITE_READ = struct.Struct(">BHHHHB")
"""FC23 request: function, first to read, count, first to write, count, bytes; then the registers to write."""


@lru_cache(maxsize=256)
def _words(count: int) -> struct.Struct:
    return struct.Struct(f">{count}H")


def pack_words(values: Sequence[int]) -> bytes:
    """Registers as big-endian bytes; raises struct.error outside 0 to 65535."""
    return _words(len(values)).pack(*values)


def unpack_words(data: bytes) -> list[int]:
    """Big-endian bytes as registers; an odd byte at the end is dropped."""
    return list(_words(len(data) // 2).unpack_from(data))


def tcp_frame(transaction: int, unit: int, message: bytes) -> bytes:
    """A message as it goes over TCP."""
    return TCP_HEAD.pack(transaction, 0, len(message) + 1, unit) + message


def request_message(request: RegisterRequest) -> bytes:
    """FC03, FC16 or FC23, as the request has something to read, to write, or both."""
    data = request.data
    if not data:
        return READ.pack(FC_READ, request.read_address, request.count)
    size = len(data)
    if not request.count:
        return WRITE.pack(FC_WRITE, request.write_address, size // 2, size) + data
    return (
        WRITE_READ.pack(FC_WRITE_READ, request.read_address, request.count, request.write_address, size // 2, size)
        + data
    )


def check_request(request: RegisterRequest) -> None:
    """Raise ValueError for what no message can carry, before anything is sent."""
    count, size = request.count, len(request.data)
    if size or not count:
        most = MAX_WRITE_READ if count else MAX_WRITE
        if size % 2 or not 1 <= size // 2 <= most:
            raise ValueError(f"write {size / 2:g} registers at {request.write_address}: one message takes 1 to {most}")
        if not 0 <= request.write_address <= 0x10000 - size // 2:
            raise ValueError(f"write registers {span(request.write_address, size // 2)}: outside 0 to 65535")
    if count or not size:
        if not 1 <= count <= MAX_READ:
            raise ValueError(f"read {count} registers at {request.read_address}: one message takes 1 to {MAX_READ}")
        if not 0 <= request.read_address <= 0x10000 - count:
            raise ValueError(f"read registers {span(request.read_address, count)}: outside 0 to 65535")


def describe(request: RegisterRequest) -> str:
    """What a request does, for messages."""
    words = len(request.data) // 2
    if not words:
        return f"reading registers {span(request.read_address, request.count)}"
    writing = f"writing registers {span(request.write_address, words)}"
    return f"{writing} and reading {span(request.read_address, request.count)}" if request.count else writing


def span(address: int, count: int) -> str:
    """First and last of some registers."""
    return f"{address}..{address + count - 1}" if count != 1 else f"{address}"


def answer_fault(request: RegisterRequest, asked: bytes, answer: bytes) -> str:
    """Why a message cannot be the answer to this request (whose message was `asked`); empty: it is, or is a refusal."""
    function = asked[0]
    if answer[:1] != asked[:1]:
        if answer and answer[0] == function | EXCEPTION and len(answer) == 2:
            return ""
        return f"asked with function {function}, answered with {answer[:1].hex() and answer[0]} ({answer[:8].hex(' ')})"
    if function == FC_WRITE:
        if len(answer) != READ.size:
            return f"the answer has {len(answer)} bytes, wanted {READ.size}"
        _, address, count = READ.unpack(answer)
        if (address, 2 * count) != (request.write_address, len(request.data)):
            return f"the answer speaks of {count} registers from {address}"
        return ""
    if len(answer) != 2 + 2 * request.count or answer[1] != 2 * request.count:
        return f"wanted {request.count} registers, got {(len(answer) - 2) / 2:g} in {len(answer)} bytes"
    return ""


def exception_text(answer: bytes) -> str:
    """The refusal in an exception response; empty for any other answer."""
    if not answer[0] & EXCEPTION:
        return ""
    return f"Modbus exception {answer[1]} ({EXCEPTION_NAMES.get(answer[1], 'unknown exception')})"


def answered_data(answer: bytes) -> bytes:
    """The registers in a proper answer; none in that to a write."""
    return b"" if answer[0] == FC_WRITE else answer[2:]


def read_span(message: bytes) -> tuple[int, int]:
    """First register and count of an FC03 request; count 0 if it is none."""
    if len(message) != READ.size:
        return 0, 0
    _, address, count = READ.unpack(message)
    return address, count


def written_words(message: bytes) -> tuple[int, list[int]]:
    """First register and values of an FC16 request; no values unless count, byte count and length agree."""
    if len(message) > WRITE.size:
        _, address, count, size = WRITE.unpack_from(message)
        if size == 2 * count == len(message) - WRITE.size:
            return address, unpack_words(message[WRITE.size :])
    return 0, []


def written_and_read(message: bytes) -> tuple[int, list[int], int, int]:
    """Of an FC23 request: first register and values to write, first and count to read; no values unless they agree."""
    if len(message) > WRITE_READ.size:
        _, read_address, read_count, address, count, size = WRITE_READ.unpack_from(message)
        if size == 2 * count == len(message) - WRITE_READ.size:
            return address, unpack_words(message[WRITE_READ.size :]), read_address, read_count
    return 0, [], 0, 0
