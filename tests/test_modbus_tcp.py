"""Our Modbus TCP connection: several requests under way, other people's servers, torn, mixed and hostile answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from drivers.errors import DeviceRefused, LinkLost
from drivers.wires.faults import FaultKind, WireFault, WireFaults
from drivers.wires.modbus_pdu import tcp_frame
from drivers.wires.modbus_tcp import ModbusTcpPort
from drivers.wires.ports import RegisterRequest
from drivers.wires.virtual_loop import run_virtual
from simulators.devices.modbus_server import answer
from simulators.devices.servers import serve_modbus_tcp
from tests.wire_parts import Registers, on_both_loops, within

Asked = tuple[int, int, bytes]
"""Transaction, unit, message."""
Behaviour = Callable[["Scripted", list[Asked]], None]


class Scripted(asyncio.Protocol):
    """A server that hands all requests of one piece to a function, which may answer as it likes."""

    def __init__(self, behaviour: Behaviour, seen: list[list[Asked]]) -> None:
        self.behaviour = behaviour
        self.seen = seen
        self.bank = Registers()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        requests = []
        while data:
            end = 6 + int.from_bytes(data[4:6], "big")
            requests.append((int.from_bytes(data[:2], "big"), data[6], data[7:end]))
            data = data[end:]
        self.seen.append(requests)
        self.behaviour(self, requests)

    def proper(self, asked: Asked) -> bytes:
        """The right answer, framed."""
        transaction, unit, message = asked
        return tcp_frame(transaction, unit, answer(self.bank, message))


@asynccontextmanager
async def scripted(behaviour: Behaviour, in_flight: int = 1) -> AsyncIterator[tuple[ModbusTcpPort, list[list[Asked]]]]:
    """A port connected to a scripted server, and the pieces that the server received."""
    seen: list[list[Asked]] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Scripted(behaviour, seen), "127.0.0.1", 0)
    port = ModbusTcpPort("engine", "127.0.0.1", server.sockets[0].getsockname()[1], in_flight=in_flight)
    await port.connect(within(5))
    try:
        yield port, seen
    finally:
        await port.close()
        server.close()


def answers_all(server: Scripted, requests: list[Asked]) -> None:
    server.transport.write(b"".join(map(server.proper, requests)))


def reads(count: int, first: int = 0) -> list[RegisterRequest]:
    return [RegisterRequest(first + n, 2) for n in range(count)]


def values(count: int, first: int = 0) -> list[bytes]:
    return [(first + n).to_bytes(2, "big") + (first + n + 1).to_bytes(2, "big") for n in range(count)]


# ---- other people's servers


@pytest.mark.parametrize("in_flight", [1, 8])
@on_both_loops
async def test_the_librarys_own_server_is_read_written_and_exchanged_with(in_flight: int) -> None:
    data = [SimData(0, count=300, values=0, datatype=DataType.REGISTERS)]
    library = ModbusTcpServer(SimDevice(1, simdata=data), address=("127.0.0.1", 15991))
    await library.serve_forever(background=True)
    port = ModbusTcpPort("engine", "127.0.0.1", 15991, in_flight=in_flight)
    await port.connect(within(5))
    await port.write(100, [7, 65535, 0], within(5))
    assert await port.read(99, 5, within(5)) == [0, 7, 65535, 0, 0]
    assert await port.write_read(200, [1, 2], 199, 4, within(5)) == [0, 1, 2, 0]
    for address in range(20):  # one caller's requests one by one: the library's server forgets the second of a piece
        assert await port.exchange([RegisterRequest(100, 1)], within(5)) == [b"\0\7"], address
    with pytest.raises(DeviceRefused, match=r"reading registers 299\.\.300: Modbus exception 2"):
        await port.read(299, 2, within(5))
    assert await port.read(100, 1, within(5)) == [7]
    await port.close()
    await library.shutdown()  # type: ignore[no-untyped-call]


# ---- several under way


@pytest.mark.parametrize("in_flight", [1, 3, 16])
@on_both_loops
async def test_no_more_requests_than_allowed_are_under_way_and_answers_may_come_in_any_order(in_flight: int) -> None:
    generator = random.Random(in_flight)
    open_now: set[int] = set()
    most = 0

    def shuffled(server: Scripted, requests: list[Asked]) -> None:
        nonlocal most
        open_now.update(transaction for transaction, _, _ in requests)
        most = max(most, len(open_now))
        generator.shuffle(requests)
        for asked in requests:
            open_now.discard(asked[0])
            server.transport.write(server.proper(asked))

    async with scripted(shuffled, in_flight) as (port, seen):
        assert await port.exchange(reads(50), within(5)) == values(50)
        assert most == in_flight
        transactions = [transaction for piece in seen for transaction, _, _ in piece]
        assert len(set(transactions)) == 50


@on_both_loops
async def test_a_poll_does_not_wait_for_a_whole_download() -> None:
    async with scripted(answers_all, 2) as (port, seen):
        download = asyncio.create_task(port.exchange(reads(40), within(5)))
        poll = asyncio.create_task(port.read(300, 1, within(5)))
        assert await poll == [300]
        assert not download.done()
        asked = [message for piece in seen for _, _, message in piece]
        assert asked.index(b"\3\1\x2c\0\1") < 5
        assert await download == values(40)


@on_both_loops
async def test_after_a_refusal_no_more_of_the_same_batch_is_asked_and_the_link_stays() -> None:
    async with scripted(answers_all, 4) as (port, seen):
        batch = [*reads(6), RegisterRequest(write_address=400, data=b"\0\1"), *reads(30)]
        with pytest.raises(DeviceRefused, match=r"writing registers 400: Modbus exception 3"):
            await port.exchange(batch, within(5))
        assert sum(map(len, seen)) == 8, "the window with the refused one, and no further"
        assert await port.exchange(reads(3), within(5)) == values(3)
        assert port.stale_answers == 0


# ---- torn, merged, strange


def test_answers_torn_and_merged_anywhere_are_all_understood() -> None:
    generator = random.Random(11)

    def torn(server: Scripted, requests: list[Asked]) -> None:
        data = b"".join(map(server.proper, requests))
        while data:
            cut = generator.randint(1, min(len(data), generator.choice((3, 30, 300))))
            server.transport.write(data[:cut])
            data = data[cut:]

    async def main(in_flight: int) -> None:
        async with scripted(torn, in_flight) as (port, _):
            for turn in range(40):
                assert await port.exchange(reads(30, turn), within(5)) == values(30, turn)
            assert port.stale_answers == 0

    for in_flight in (1, 2, 7, 16):
        run_virtual(main(in_flight))


def test_whatever_a_server_sends_a_value_is_right_or_absent() -> None:
    """Garbage before, inside and instead of answers, answers twice, to others, of other units and functions."""
    generator = random.Random(12)

    def hostile(server: Scripted, requests: list[Asked]) -> None:
        for asked in requests:
            proper = server.proper(asked)
            transaction, unit, _ = asked
            match generator.randrange(12):
                case 0:
                    server.transport.write(generator.randbytes(generator.randrange(1, 300)))
                case 1:
                    server.transport.write(proper + proper)
                case 2:
                    server.transport.write(tcp_frame(transaction ^ 0x5A5A, unit, b"\x03\x04\xff\xff\xff\xff") + proper)
                case 3:
                    server.transport.write(tcp_frame(transaction, unit + 1, b"\x03\x04\xff\xff\xff\xff"))
                case 4:
                    server.transport.write(tcp_frame(transaction, unit, b"\x17\x04\xff\xff\xff\xff"))
                case 5:
                    server.transport.write(tcp_frame(transaction, unit, b"\x03\x06" + b"\xff" * 6))
                case 6:
                    server.transport.write(proper[: generator.randrange(1, len(proper))])
                case 7:
                    server.transport.close()
                case _:
                    server.transport.write(proper)

    async def main(in_flight: int) -> tuple[int, int]:
        right = absent = 0
        async with scripted(hostile, in_flight) as (port, _):
            for turn in range(300):
                try:
                    got = await port.exchange(reads(3, turn), within(0.1))
                except LinkLost:
                    absent += 1
                else:
                    right += 1
                    assert got == values(3, turn)
        return right, absent

    for in_flight in (1, 4):
        right, absent = run_virtual(main(in_flight))
        assert right > 20
        assert absent > 20


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda t, u: tcp_frame(t, u + 1, b"\x03\x02\0\1"), "asked unit 1, answered by unit 2"),
        (lambda t, u: tcp_frame(t, u, b"\x17\x02\0\1"), "asked with function 3, answered with 23"),
        (lambda t, u: tcp_frame(t, u, b"\x03\x04\0\1\0\2"), "wanted 1 registers, got 2"),
        (lambda t, u: tcp_frame(t, u, b"\x03\x04\0\1"), "wanted 1 registers, got 1 in 4 bytes"),
        (lambda t, u: b"HTTP/1.1 400 Bad", "garbled answer: protocol id is not 0"),
        (lambda t, u: b"\0\1\0\0\x01\x50\x01\x03", "garbled answer: length 336"),
        (lambda t, u: tcp_frame(t, u, b"\x2b\x02\0\1"), "garbled answer: function 43"),
    ],
    ids=["unit", "function", "count", "size", "protocol", "length", "unknown function"],
)
@on_both_loops
async def test_a_wrong_answer_is_named_at_once_and_the_next_question_goes_over_a_new_connection(
    wrong: Callable[[int, int], bytes], text: str
) -> None:
    spoilt: list[int] = []

    def once(server: Scripted, requests: list[Asked]) -> None:
        if spoilt:
            answers_all(server, requests)
        else:
            spoilt.append(1)
            server.transport.write(wrong(*requests[0][:2]))

    async with scripted(once) as (port, seen):
        with pytest.raises(LinkLost, match="reading registers 5: .*" + text):
            await port.read(5, 1, within(60))
        assert await port.read(5, 1, within(5)) == [5]
        assert seen[0][0][0] != seen[1][0][0], "transaction ids go on over connections"


@on_both_loops
async def test_a_write_is_acknowledged_only_by_its_own_address_and_count() -> None:
    def wrong(server: Scripted, requests: list[Asked]) -> None:
        server.transport.write(tcp_frame(requests[0][0], 1, b"\x10\0\x0a\0\2"))

    async with scripted(wrong) as (port, _):
        with pytest.raises(LinkLost, match="writing registers 10: the answer speaks of 2 registers from 10"):
            await port.write(10, [1], within(5))


# ---- given up: the suspect connection


@pytest.mark.parametrize("how", ["timeout", "cancellation"])
@on_both_loops
async def test_a_question_given_up_leaves_the_others_their_answers_and_is_the_last_of_its_connection(how: str) -> None:
    faults = WireFaults()
    bank = Registers()
    async with serve_modbus_tcp(bank, "127.0.0.1", 0, faults=faults) as wire:
        port = ModbusTcpPort("engine", "127.0.0.1", wire.port, in_flight=4)
        await port.connect(within(5))
        faults.add(WireFault(wire.address, FaultKind.DELAY, nth=1, delay_ns=300_000_000))
        given_up = asyncio.create_task(port.read(1, 1, within(0.05 if how == "timeout" else 60)))
        await asyncio.sleep(0)
        others = asyncio.create_task(port.exchange(reads(40, 50), within(5)))
        await asyncio.sleep(0.1)
        if how == "cancellation":
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
        else:
            with pytest.raises(LinkLost, match=r"reading registers 1: no answer within"):
                await given_up
        assert await others == values(40, 50), "what waited is answered; what was not sent goes over a new connection"
        assert await port.read(2, 1, within(5)) == [2]
        assert wire.requests >= 42, "nothing was asked twice, nothing was left out"
        await port.close()


@on_both_loops
async def test_nothing_is_asked_twice_when_a_connection_is_given_up() -> None:
    asked: list[bytes] = []

    def mute_first(server: Scripted, requests: list[Asked]) -> None:
        first = not asked
        asked.extend(message for _, _, message in requests)
        if not first:
            answers_all(server, requests)

    async with scripted(mute_first, 1) as (port, _):
        lost = asyncio.create_task(port.read(400, 1, within(0.05)))
        await asyncio.sleep(0)
        batch = asyncio.create_task(port.exchange(reads(10), within(5)))
        with pytest.raises(LinkLost):
            await lost
        assert await batch == values(10)
        assert len(asked) == len(set(asked)) == 11


@on_both_loops
async def test_a_batch_cut_by_its_deadline_says_how_far_it_came() -> None:
    count = 0

    def six(server: Scripted, requests: list[Asked]) -> None:
        nonlocal count
        for asked in requests:
            count += 1
            if count <= 6:
                server.transport.write(server.proper(asked))

    async with scripted(six, 2) as (port, _):
        with pytest.raises(LinkLost, match=r"reading registers 6\.\.7 \(6 of 20 requests were answered\): no answer"):
            await port.exchange(reads(20), within(0.1))


@pytest.mark.parametrize("in_flight", [0, 17])
def test_a_window_that_no_device_has_is_a_program_error(in_flight: int) -> None:
    with pytest.raises(ValueError, match="wanted 1 to 16"):
        ModbusTcpPort("engine", "127.0.0.1", 1502, in_flight=in_flight)
