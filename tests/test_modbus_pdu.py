"""Our Modbus messages against the library's, byte for byte, and against garbage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.framer import FramerSocket
from pymodbus.pdu import DecodePDU
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadHoldingRegistersResponse,
    ReadWriteMultipleRegistersRequest,
    ReadWriteMultipleRegistersResponse,
    WriteMultipleRegistersRequest,
    WriteMultipleRegistersResponse,
)

from drivers.wires.modbus_pdu import (
    answer_fault,
    answered_data,
    check_request,
    describe,
    exception_text,
    pack_words,
    read_span,
    request_message,
    tcp_frame,
    unpack_words,
    written_and_read,
    written_words,
)
from drivers.wires.ports import RegisterRequest
from simulators.devices.modbus_server import answer
from tests.wire_parts import Registers

words = st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=120)
addresses = st.integers(0, 300)
counts = st.integers(1, 125)


@given(addresses, counts, addresses, words, st.integers(1, 0xFFFF), st.integers(0, 255))
def test_our_requests_are_the_librarys_to_the_byte(
    address: int, count: int, write_address: int, values: list[int], transaction: int, unit: int
) -> None:
    data = pack_words(values)
    theirs = FramerSocket(DecodePDU(is_server=False))
    for request, pdu in [
        (RegisterRequest(address, count), ReadHoldingRegistersRequest(address=address, count=count)),
        (
            RegisterRequest(write_address=write_address, data=data),
            WriteMultipleRegistersRequest(address=write_address, registers=values),
        ),
        (
            RegisterRequest(address, count, write_address, data),
            ReadWriteMultipleRegistersRequest(
                read_address=address, read_count=count, write_address=write_address, write_registers=values
            ),
        ),
    ]:
        check_request(request)
        message = request_message(request)
        assert message == bytes((pdu.function_code,)) + pdu.encode()
        pdu.dev_id, pdu.transaction_id = unit, transaction
        assert tcp_frame(transaction, unit, message) == theirs.buildFrame(pdu)


@given(addresses, words)
def test_the_device_reads_the_librarys_requests(address: int, values: list[int]) -> None:
    read = b"\x03" + ReadHoldingRegistersRequest(address=address, count=len(values)).encode()
    assert read_span(read) == (address, len(values))
    write = b"\x10" + WriteMultipleRegistersRequest(address=address, registers=values).encode()
    assert written_words(write) == (address, values)
    both = ReadWriteMultipleRegistersRequest(
        read_address=7, read_count=3, write_address=address, write_registers=values
    ).encode()
    assert written_and_read(b"\x17" + both) == (address, values, 7, 3)


@given(addresses, words)
def test_answers_from_a_bank_are_the_librarys_and_accepted_as_such(address: int, values: list[int]) -> None:
    read = RegisterRequest(address, len(values))
    theirs: list[tuple[RegisterRequest, bytes]] = [
        (read, b"\x03" + ReadHoldingRegistersResponse(registers=values).encode()),
        (
            RegisterRequest(write_address=address, data=pack_words(values)),
            b"\x10" + WriteMultipleRegistersResponse(address=address, count=len(values)).encode(),
        ),
        (
            RegisterRequest(address, len(values), address, pack_words(values)),
            b"\x17" + ReadWriteMultipleRegistersResponse(registers=values).encode(),
        ),
    ]
    if address + len(values) <= 400:
        bank = Registers()
        bank.words[address : address + len(values)] = values
        for request, message in theirs:
            assert answer(bank, request_message(request)) == message
    for request, message in theirs:
        assert answer_fault(request, request_message(request), message) == ""
        assert exception_text(message) == ""
        assert answered_data(message) == (pack_words(values) if request.count else b"")
        assert unpack_words(answered_data(message)) == (values if request.count else [])


@given(st.binary(max_size=260), addresses, counts)
def test_an_answer_is_believed_only_if_function_and_length_are_those_asked_for(
    garbage: bytes, address: int, count: int
) -> None:
    for request in (
        RegisterRequest(address, count),
        RegisterRequest(write_address=address, data=b"\0\1" * min(count, 123)),
        RegisterRequest(address, count, 5, b"\0\1"),
    ):
        asked = request_message(request)
        for answer_bytes in (garbage, asked[:1] + garbage):
            if answer_fault(request, asked, answer_bytes):
                continue
            if exception_text(answer_bytes):
                assert (answer_bytes[0], len(answer_bytes)) == (asked[0] | 0x80, 2)
            else:
                assert len(answered_data(answer_bytes)) == 2 * request.count


@given(st.binary(min_size=1, max_size=260))
def test_a_request_that_is_garbage_never_raises_and_never_invents_registers(data: bytes) -> None:
    for got in (written_words(data)[1], written_and_read(data)[1]):
        if got:
            assert data.endswith(struct.pack(f">{len(got)}H", *got))
    read_span(data)
    bank = Registers()
    before = list(bank.words)
    if data[0] not in (6, 16, 23):
        if data[0] != 3 or 402 not in range(read_span(data)[0], sum(read_span(data))):  # 402 fails on purpose
            answer(bank, data)
        assert bank.words == before


@pytest.mark.parametrize(
    "request_",
    [
        RegisterRequest(),
        RegisterRequest(0, 126),
        RegisterRequest(65535, 2),
        RegisterRequest(-1, 1),
        RegisterRequest(write_address=0, data=b"\0" * 248),
        RegisterRequest(write_address=0, data=b"\0"),
        RegisterRequest(write_address=65535, data=b"\0\0\0\0"),
        RegisterRequest(0, 1, 0, b"\0" * 244),
    ],
)
def test_what_no_message_can_carry_is_a_program_error(request_: RegisterRequest) -> None:
    with pytest.raises(ValueError, match="registers"):
        check_request(request_)


def test_a_request_says_what_it_does() -> None:
    assert describe(RegisterRequest(10, 3)) == "reading registers 10..12"
    assert describe(RegisterRequest(write_address=4, data=b"\0\1")) == "writing registers 4"
    assert describe(RegisterRequest(9, 1, 4, b"\0\1\0\2")) == "writing registers 4..5 and reading 9"
