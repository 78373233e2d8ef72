"""Simulated devices behind their wires: several clients, garbage, failures, faults, and the ptys themselves."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.framer.rtu import FramerRTU
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.server.requesthandler import ServerRequestHandler
from pymodbus.transport import ModbusProtocol

from drivers.errors import LinkLost, Refused
from drivers.wires.addresses import serial_address, tcp_address
from drivers.wires.faults import FOREVER_NS, FaultKind, WireFault, WireFaults
from drivers.wires.modbus import ModbusRtuPort, ModbusTcpPort
from drivers.wires.serial_line import AsciiLinePort
from drivers.wires.virtual_loop import VirtualLoop, run_virtual
from simulators.devices.servers import serve_ascii, serve_modbus_rtu, serve_modbus_tcp
from tests.wire_parts import Axis, Registers, on_both_loops, within

BAUD = 115200


@on_both_loops
async def test_an_engineer_can_look_while_the_controller_works() -> None:
    bank = Registers()
    async with serve_modbus_tcp(bank, "127.0.0.1", 0) as wire:
        port = ModbusTcpPort("engine", "127.0.0.1", wire.port)
        await port.connect(within(5))
        engineer = AsyncModbusTcpClient("127.0.0.1", port=wire.port, timeout=5, retries=0, reconnect_delay=0)
        assert await engineer.connect()

        async def look() -> None:
            for address in range(50):
                answer = await engineer.read_holding_registers(address, count=3, device_id=255)
                assert answer.registers == [address, address + 1, address + 2]
            await engineer.write_register(300, 7)
            assert (await engineer.read_coils(0)).exception_code == 1

        async def work() -> None:
            for address in range(50):
                assert await port.read(address, 1, within(5)) == [address]

        async with asyncio.TaskGroup() as group:
            group.create_task(look())
            group.create_task(work())
        assert bank.words[300] == 7
        engineer.close()
        await port.close()


@pytest.mark.skipif(
    shutil.which("mbpoll") is None, reason="mbpoll is not installed: another Modbus master was not tried"
)
async def test_mbpoll_reads_a_served_bank() -> None:
    async with serve_modbus_tcp(Registers(), "127.0.0.1", 0) as wire:
        process = await asyncio.create_subprocess_exec(
            "mbpoll", "-m", "tcp", "-p", str(wire.port), "-0", "-r", "10", "-c", "3", "-1", "-q", "127.0.0.1",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert [line.split()[-1] for line in output.decode().splitlines() if line.startswith("[")] == ["10", "11", "12"]


@on_both_loops
async def test_requests_in_one_piece_or_byte_by_byte_are_all_answered_in_order() -> None:
    async with serve_modbus_tcp(Registers(), "127.0.0.1", 0) as wire:
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        requests = b"".join(bytes([0, n, 0, 0, 0, 6, 9, 3, 0, n, 0, 1]) for n in range(20))
        answers = b"".join(bytes([0, n, 0, 0, 0, 5, 9, 3, 2, 0, n]) for n in range(20))
        writer.write(requests)
        assert await reader.readexactly(len(answers)) == answers
        for at in range(len(requests)):
            writer.write(requests[at : at + 1])
            await writer.drain()
        assert await reader.readexactly(len(answers)) == answers
        writer.close()
        await writer.wait_closed()
        assert wire.requests == 40


@pytest.mark.parametrize(
    ("request_hex", "answer_hex"),
    [
        ("00 01 00 00 00 06 01 03 00 00 00 7e", "00 01 00 00 00 03 01 83 03"),  # 126 registers
        ("00 01 00 00 00 06 01 03 00 00 00 00", "00 01 00 00 00 03 01 83 03"),  # none
        ("00 01 00 00 00 06 01 03 ff ff 00 02", "00 01 00 00 00 03 01 83 02"),  # past 65535
        ("00 01 00 00 00 04 01 03 00 00", "00 01 00 00 00 03 01 83 03"),  # too short
        ("00 01 00 00 00 09 01 10 00 00 00 02 04 00 01", "00 01 00 00 00 03 01 90 03"),  # counts disagree
        ("00 01 00 00 00 06 01 06 01 90 00 01", "00 01 00 00 00 03 01 86 03"),  # write one: refused value
        ("00 01 00 00 00 06 01 04 00 00 00 01", "00 01 00 00 00 03 01 84 01"),  # input registers: no such function
        ("00 01 00 00 00 02 01 63", "00 01 00 00 00 03 01 e3 01"),  # unknown function
        ("00 01 00 00 00 06 01 08 00 00 12 34", "00 01 00 00 00 06 01 08 00 00 12 34"),  # echo
        ("00 01 00 00 00 06 01 08 00 01 00 00", "00 01 00 00 00 03 01 88 01"),  # other diagnostics
    ],
)
@on_both_loops
async def test_requests_that_are_wrong_get_the_exception_of_the_standard(request_hex: str, answer_hex: str) -> None:
    async with serve_modbus_tcp(Registers(), "127.0.0.1", 0) as wire:
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        writer.write(bytes.fromhex(request_hex))
        answer = bytes.fromhex(answer_hex)
        assert (await reader.readexactly(len(answer))).hex(" ") == answer_hex
        writer.close()
        await writer.wait_closed()


@on_both_loops
async def test_a_failing_device_answers_exception_4_and_the_reason_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Registers):
        def read(self, address: int, count: int) -> list[int]:
            return [70000] * count if address == 0 else [1]

    async with serve_modbus_tcp(Broken(), "127.0.0.1", 0) as wire:
        port = ModbusTcpPort("engine", "127.0.0.1", wire.port)
        await port.connect(within(5))
        for address, count in ((0, 1), (1, 2), (402, 3)):
            with pytest.raises(Exception, match="exception 4"):
                await port.read(address, count, within(5))
        assert wire.failures == 3
        assert "does not fit" in caplog.text
        await port.close()


def test_garbage_never_stops_a_tcp_server() -> None:
    async def main() -> None:
        generator = random.Random(4)
        async with serve_modbus_tcp(Registers(), "127.0.0.1", 5020) as wire:
            for _ in range(300):
                reader, writer = await asyncio.open_connection("127.0.0.1", 5020)
                header = b"\x00\x01\x00\x00" if generator.random() < 0.7 else b""
                writer.write(header + generator.randbytes(generator.randrange(1, 300)))
                writer.write_eof()
                await reader.read()
                writer.close()
                await writer.wait_closed()
            assert wire.garbage > 0
            assert wire.failures == 0, "garbage is not a failure of the device"
            port = ModbusTcpPort("engine", "127.0.0.1", 5020)
            await port.connect(within(5))
            await port.write(300, [5], within(5))
            assert await port.read(300, 1, within(5)) == [5]
            await port.close()

    run_virtual(main())


def test_garbage_never_stops_a_serial_server() -> None:
    async def main() -> None:
        generator = random.Random(5)
        async with serve_modbus_rtu(Registers(), "/rtu", BAUD, 3) as wire, serve_ascii(Axis(), "/ascii", BAUD) as line:
            for path in ("/rtu", "/ascii"):
                for _ in range(300):
                    loop = asyncio.get_running_loop()
                    assert isinstance(loop, VirtualLoop)
                    transport, _ = await loop.create_serial_connection(asyncio.Protocol, path)
                    lead = generator.choice([b"\x03\x03", b"\x03\x10", b":01GET*", b""])
                    transport.write(lead + generator.randbytes(generator.randrange(1, 300)))
                    await asyncio.sleep(generator.random() * 0.1)
                    transport.close()
                    await asyncio.sleep(0)
            rtu = ModbusRtuPort("gantry", "/rtu", BAUD, 3)
            await asyncio.sleep(0.1)
            await rtu.connect(within(5))
            assert await rtu.read(7, 2, within(5)) == [7, 8]
            await rtu.close()
            axis = AsciiLinePort("couch", "/ascii", BAUD)
            await axis.connect(within(5))
            assert await axis.query("GET", within(5)) == "0.000"
            await axis.close()
            assert (wire.failures, line.failures) == (0, 0)
            assert wire.garbage > 0
            assert line.garbage > 0

    run_virtual(main())


def rtu_frame(body: str) -> bytes:
    data = bytes.fromhex(body)
    return data + FramerRTU.compute_CRC(data).to_bytes(2, "big")


def test_an_rtu_server_finds_its_frame_ignores_others_and_forgets_halves() -> None:
    heard: list[bytes] = []

    class Listener(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            heard.append(data)

    async def main() -> None:
        async with serve_modbus_rtu(Registers(), "/rtu", BAUD, 3) as wire:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            transport, _ = await loop.create_serial_connection(Listener, "/rtu")

            async def say(*pieces: bytes, gap_s: float = 0.0) -> list[bytes]:
                heard.clear()
                for piece in pieces:
                    transport.write(piece)
                    await asyncio.sleep(gap_s)
                await asyncio.sleep(1.0)
                return list(heard)

            read_7 = rtu_frame("03 03 00 07 00 01")
            seven = rtu_frame("03 03 02 00 07")
            assert await say(read_7) == [seven]
            assert await say(rtu_frame("04 03 00 07 00 01")) == [], "another unit"
            assert await say(read_7[:-1] + b"\x00") == [], "broken checksum"
            assert await say(b"\xff\x00\x03" + read_7) == [seven], "garbage before"
            assert await say(read_7[:5], read_7[5:], gap_s=0.01) == [seven], "in two pieces"
            assert await say(read_7[:5], read_7, gap_s=0.1) == [seven], "half a frame, a silence, a whole one"
            assert await say(rtu_frame("03 63 00")) == [rtu_frame("03 e3 01")], "unknown function"
            assert await say(rtu_frame("03 08 00 00 ab cd")) == [rtu_frame("03 08 00 00 ab cd")], "echo"
            assert wire.failures == 0
            transport.close()

    run_virtual(main())


# ---- faults mean the same on both loops


@on_both_loops
async def test_each_fault_does_what_it_says_to_a_reply() -> None:
    faults = WireFaults()
    async with serve_modbus_tcp(Registers(), "127.0.0.1", 0, faults=faults) as wire:
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        whole = bytes([0, 1, 0, 0, 0, 5, 1, 3, 2, 0, 7])
        loop_s = asyncio.get_running_loop().time

        async def ask(*added: WireFault) -> bytes:
            """The reply to one read of register 7 under new faults, with the echo of FC08 that follows it cut off."""
            for fault in added:
                faults.add(fault)
            writer.write(bytes([0, 1, 0, 0, 0, 6, 1, 3, 0, 7, 0, 1]))
            await asyncio.sleep(0.02)
            writer.write(marker)
            return (await reader.readuntil(marker))[: -len(marker)]

        marker = bytes.fromhex("00 02 00 00 00 06 01 08 00 00 be ef")
        address = wire.address
        assert await ask() == whole
        assert await ask(WireFault(address, FaultKind.DROP, nth=1)) == b""
        assert await ask(WireFault(address, FaultKind.DUPLICATE, nth=1)) == whole + whole
        assert await ask(WireFault(address, FaultKind.CORRUPT, nth=1, byte=-1, mask=0xF0)) == whole[:-1] + b"\xf7"
        before_s = loop_s()
        assert await ask(WireFault(address, FaultKind.DELAY, nth=1, delay_ns=300_000_000)) == whole
        assert loop_s() - before_s >= 0.3, "the reply was held back, and what followed it waited behind it"
        assert await ask(WireFault(address, FaultKind.DROP, "request", nth=1)) == b""
        now_ns = round(loop_s() * 1e9)
        over = WireFault(address, FaultKind.CUT, "both", until_ns=now_ns)
        elsewhere = WireFault(tcp_address("127.0.0.1", 1), FaultKind.CUT, "both")
        later = WireFault(address, FaultKind.CUT, "both", from_ns=now_ns + 10**12)
        assert await ask(over, elsewhere, later) == whole
        kinds = [fault.kind for _, fault in faults.applied]
        assert kinds == ["drop", "duplicate", "corrupt", "delay", "drop"]
        writer.close()
        await writer.wait_closed()


@on_both_loops
async def test_a_cut_wire_stays_connected_and_heals() -> None:
    faults = WireFaults(origin_ns=round(asyncio.get_running_loop().time() * 1e9))
    async with serve_modbus_tcp(Registers(), "127.0.0.1", 0, faults=faults) as wire:
        port = ModbusTcpPort("engine", "127.0.0.1", wire.port)
        await port.connect(within(5))
        faults.add(WireFault(wire.address, FaultKind.CUT, "both", until_ns=200_000_000))
        with pytest.raises(LinkLost, match="no answer within"):
            await port.read(0, 1, within(0.05))
        await asyncio.sleep(0.25)
        assert await port.read(3, 1, within(5)) == [3]
        await port.close()


def test_faults_that_cannot_be_meant_are_refused() -> None:
    wrong: list[tuple[FaultKind, dict[str, int]]] = [
        (FaultKind.DELAY, {}),
        (FaultKind.CORRUPT, {"mask": 0}),
        (FaultKind.DROP, {"nth": 0}),
    ]
    for kind, options in wrong:
        with pytest.raises(ValueError, match="wire fault on tcp://a:1"):
            WireFault("tcp://a:1", kind, **options)  # type: ignore[arg-type]


def test_a_window_counts_its_own_messages() -> None:
    fault = WireFault("x", FaultKind.DROP, from_ns=100, until_ns=200, nth=2)
    faults = WireFaults([fault], origin_ns=1000)
    kept = [t for t in range(1000, 1300, 30) if faults.pass_on("x", "reply", b"?", t)]
    assert kept == [t for t in range(1000, 1300, 30) if t != 1150]
    assert faults.applied == [(150, fault)]
    assert fault.until_ns < FOREVER_NS


# ---- addresses and ptys


@on_both_loops
async def test_an_address_that_is_taken_is_refused(tmp_path: Path) -> None:
    async with serve_modbus_tcp(Registers(), "127.0.0.1", 0) as wire:
        with pytest.raises(Refused, match="cannot listen"):
            async with serve_modbus_tcp(Registers(), "127.0.0.1", wire.port):
                pass
    path = str(tmp_path / "gantry")
    async with serve_modbus_rtu(Registers(), path, BAUD, 3):
        for second in (serve_modbus_rtu(Registers(), path, BAUD, 3), serve_ascii(Axis(), path, BAUD)):
            with pytest.raises(Refused, match="gantry"):
                async with second:
                    pass
        port = ModbusRtuPort("gantry", path, BAUD, 3)
        await port.connect(within(5))
        await port.close()


async def test_the_link_of_a_pty_comes_with_its_folder_and_goes_with_its_server(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "gantry"
    async with serve_modbus_rtu(Registers(), str(path), BAUD, 3):
        assert path.is_symlink()
        assert os.readlink(path).startswith("/dev/pts/")
    assert list(path.parent.iterdir()) == []
    path.symlink_to("/dev/pts/4000000")  # as a killed simulator leaves it
    async with serve_ascii(Axis(), str(path), BAUD):
        assert path.exists()
    assert not path.is_symlink()


@pytest.mark.parametrize("what", ["file", "link to a real port"])
async def test_a_simulator_never_takes_the_place_of_anything_else(what: str, tmp_path: Path) -> None:
    path = tmp_path / "ttyUSB0"
    if what == "file":
        path.write_text("mine")
    else:
        path.symlink_to("/dev/ttyS0")
    with pytest.raises(Refused, match="real port"):
        async with serve_modbus_rtu(Registers(), str(path), BAUD, 3):
            pass
    assert path.is_symlink() or path.read_text() == "mine"
    assert not path.with_name("ttyUSB0.lock").exists()


async def test_an_answer_to_a_port_that_nobody_reads_does_not_stop_the_server(tmp_path: Path) -> None:
    path = str(tmp_path / "gantry")
    async with serve_modbus_rtu(Registers(), path, BAUD, 3) as wire:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        request = rtu_frame("03 03 00 00 00 7d")
        while wire.requests < 100:  # 25 KB of answers, none of them read
            os.write(fd, request)
            await asyncio.sleep(0.0005)
        os.close(fd)
        port = ModbusRtuPort("gantry", path, BAUD, 3)
        await port.connect(within(30))
        assert await port.read(7, 1, within(5)) == [7]
        await port.close()


TWO_PROCESSES = """
import asyncio, sys
from simulators.devices.servers import serve_ascii, serve_modbus_rtu, serve_modbus_tcp
from tests.wire_parts import Axis, Registers
async def main():
    folder = sys.argv[1]
    async with (
        serve_modbus_tcp(Registers(), "127.0.0.1", 0) as wire,
        serve_modbus_rtu(Registers(), folder + "/rtu", 115200, 3),
        serve_ascii(Axis(), folder + "/ascii", 115200),
    ):
        print(wire.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


async def test_controller_and_simulators_in_two_processes(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TWO_PROCESSES, str(tmp_path),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    tcp = ModbusTcpPort("engine", "127.0.0.1", int(await process.stdout.readline()))
    rtu = ModbusRtuPort("gantry", str(tmp_path / "rtu"), BAUD, 3)
    axis = AsciiLinePort("couch", str(tmp_path / "ascii"), BAUD)
    for port in (tcp, rtu, axis):
        await port.connect(within(30))
    assert await tcp.write_read(5, [99], 4, 3, within(30)) == [4, 99, 6]
    assert await rtu.read(0, 125, within(30)) == list(range(125))
    assert await axis.query("GOTO 12.5", within(30)) == "OK"
    process.kill()
    await process.wait()
    for ask in (tcp.read(0, 1, within(0.5)), rtu.read(0, 1, within(0.5)), axis.query("GET", within(0.5))):
        with pytest.raises(LinkLost):
            await ask
    async with serve_modbus_rtu(Registers(), str(tmp_path / "rtu"), BAUD, 3):  # the killed one's link is replaced
        assert await rtu.read(8, 1, within(30)) == [8]
        for port in (tcp, rtu, axis):
            await port.close()
    assert serial_address(str(tmp_path / "rtu")) == rtu.address


# ---- what of the library is overridden


def parameters(function: Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_parts_of_the_library_that_the_servers_override_still_exist() -> None:
    assert parameters(ServerRequestHandler.__init__) == ["self", "owner", "trace_packet", "trace_pdu", "trace_connect"]
    assert parameters(ModbusProtocol.data_received) == ["self", "data"]
    assert parameters(ModbusProtocol.connection_lost) == ["self", "exc"]
    assert parameters(ModbusProtocol.close) == ["self", "reconnect"]
    for server in (ModbusTcpServer, ModbusSerialServer):
        assert parameters(server.callback_new_connection) == ["self"]
        assert "custom_pdu" in parameters(server.__init__)
    assert "self.call_create()" in inspect.getsource(ModbusProtocol.listen)
    assert "self.callback_new_connection()" in inspect.getsource(ModbusProtocol.handle_new_connection)
    assert FramerRTU.compute_CRC(b"\x01\x03\x00\x00\x00\x01") == 0x840A
