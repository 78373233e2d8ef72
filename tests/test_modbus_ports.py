"""Modbus ports against simulated devices over real sockets, real ptys and the virtual network."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pymodbus.client import AsyncModbusSerialClient
from pymodbus.transaction import TransactionManager

from drivers.errors import DeviceRefused, LinkLost
from drivers.wires.addresses import serial_address
from drivers.wires.faults import FaultKind, WireFault, WireFaults
from drivers.wires.modbus import ModbusRtuPort, ModbusTcpPort
from drivers.wires.virtual_loop import VirtualLoop, run_virtual
from simulators.devices.servers import serve_modbus_rtu, serve_modbus_tcp
from tests.wire_parts import Registers, on_both_loops, run_real, within

BAUD = 115200
UNIT = 3
AnyPort = ModbusTcpPort | ModbusRtuPort


@asynccontextmanager
async def a_device(
    wire: str, folder: Path, faults: WireFaults | None = None, **options: Any
) -> AsyncIterator[tuple[AnyPort, Registers]]:
    """A served bank and a connected port to it."""
    bank = Registers()
    if wire == "tcp":
        async with serve_modbus_tcp(bank, "127.0.0.1", 0, faults=faults) as served:
            port: AnyPort = ModbusTcpPort("engine", "127.0.0.1", served.port)
            await port.connect(within(5))
            yield port, bank
            await port.close()
    else:
        path = str(folder / "lines" / "gantry")
        async with serve_modbus_rtu(bank, path, BAUD, UNIT, faults=faults):
            port = ModbusRtuPort("gantry", path, BAUD, UNIT, **options)
            await port.connect(within(5))
            yield port, bank
            await port.close()


both_wires = pytest.mark.parametrize("wire", ["tcp", "rtu"])


@both_wires
@on_both_loops
async def test_registers_are_read_written_and_exchanged(wire: str, tmp_path: Path) -> None:
    async with a_device(wire, tmp_path) as (port, bank):
        assert await port.read(10, 3, within(5)) == [10, 11, 12]
        assert await port.read(0, 125, within(5)) == list(range(125))
        await port.write(100, [0, 65535, 7], within(5))
        assert bank.words[100:103] == [0, 65535, 7]
        await port.write(100, list(range(123)), within(5))
        assert bank.words[100:223] == list(range(123))
        assert await port.write_read(20, [5, 6], 19, 4, within(5)) == [19, 5, 6, 22]


@both_wires
@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda port: port.read(499, 2, within(5)), "exception 2 (illegal address)"),
        (lambda port: port.write(400, [1], within(5)), "exception 3 (illegal value)"),
        (lambda port: port.write(401, [1], within(5)), "exception 6 (device busy)"),
        (lambda port: port.read(402, 1, within(5)), "exception 4 (device failure)"),
    ],
    ids=["address", "value", "busy", "failure"],
)
@on_both_loops
async def test_a_refusal_names_device_registers_and_reason_and_leaves_the_link_usable(
    wire: str, tmp_path: Path, ask: Callable[[AnyPort], Coroutine[Any, Any, Any]], code: str
) -> None:
    async with a_device(wire, tmp_path) as (port, _):
        with pytest.raises(DeviceRefused) as caught:
            await ask(port)
        assert str(caught.value).startswith(port.device + ": " + port.address)
        assert code in str(caught.value)
        assert await port.read(10, 1, within(5)) == [10]


@both_wires
@on_both_loops
async def test_cancelling_a_pending_call_raises_cancelled_error_and_later_calls_work(wire: str, tmp_path: Path) -> None:
    faults = WireFaults()
    async with a_device(wire, tmp_path, faults, **({"worst_reply_s": 0.02} if wire == "rtu" else {})) as (port, _):
        loop_s = asyncio.get_running_loop().time
        cut = WireFault(port.address, FaultKind.CUT, "reply", until_ns=round(loop_s() * 1e9) + 100_000_000)
        faults.add(cut)
        task = asyncio.create_task(port.read(10, 1, within(60)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert faults.applied, "the call must have been pending on an answer"
        await asyncio.sleep(0.1)
        assert await port.read(20, 1, within(5)) == [20]


@both_wires
@on_both_loops
async def test_silence_is_link_lost_at_the_deadline_naming_what_was_asked(wire: str, tmp_path: Path) -> None:
    faults = WireFaults()
    async with a_device(wire, tmp_path, faults) as (port, _):
        faults.add(WireFault(port.address, FaultKind.CUT, "both"))
        with pytest.raises(LinkLost, match=r"reading registers 10\.\.12: no answer within .*deadline of: poll status"):
            await port.read(10, 3, within(0.05, "poll status"))


@both_wires
@on_both_loops
async def test_a_deadline_that_is_over_sends_nothing(wire: str, tmp_path: Path) -> None:
    async with a_device(wire, tmp_path) as (port, bank):
        with pytest.raises(LinkLost, match="over before"):
            await port.write(10, [99], within(-1))
        assert await port.read(10, 1, within(5)) == [10]
        assert bank.words[10] == 10


@both_wires
@on_both_loops
async def test_many_callers_of_one_port_each_get_their_own_answer(wire: str, tmp_path: Path) -> None:
    async with a_device(wire, tmp_path) as (port, _), asyncio.TaskGroup() as group:
        tasks = [group.create_task(port.read(address, 2, within(30))) for address in range(40)]
        for address, task in enumerate(tasks):
            assert await task == [address, address + 1]


@both_wires
@on_both_loops
async def test_a_caller_given_up_while_waiting_for_its_turn_disturbs_nobody(wire: str, tmp_path: Path) -> None:
    async with a_device(wire, tmp_path) as (port, _):
        first = asyncio.create_task(port.read(1, 1, within(5)))
        second = asyncio.create_task(port.read(2, 1, within(5)))
        await asyncio.sleep(0)
        second.cancel()
        assert await first == [1]
        with pytest.raises(asyncio.CancelledError):
            await second


@on_both_loops
async def test_arguments_that_cannot_be_sent_are_program_errors(tmp_path: Path) -> None:
    async with a_device("rtu", tmp_path) as (port, bank):
        before = list(bank.words)
        for bad in (
            lambda: port.read(0, 126, within(5)),
            lambda: port.read(0, 0, within(5)),
            lambda: port.read(65535, 2, within(5)),
            lambda: port.write(0, [0] * 124, within(5)),
            lambda: port.write(0, [65536], within(5)),
            lambda: port.write(0, [-1], within(5)),
            lambda: port.write(0, [], within(5)),
            lambda: port.write_read(0, [0] * 122, 0, 1, within(5)),
        ):
            with pytest.raises(ValueError, match="registers"):
                await bad()
        assert bank.words == before
        assert isinstance(port, ModbusRtuPort)
        assert not port.suspect


@both_wires
@on_both_loops
async def test_a_port_that_is_not_open_says_so(wire: str, tmp_path: Path) -> None:
    async with a_device(wire, tmp_path) as (port, _):
        await port.close()
        with pytest.raises(LinkLost, match="call connect first"):
            await port.read(0, 1, within(5))
        await port.connect(within(5))
        assert await port.read(0, 1, within(5)) == [0]


@both_wires
@on_both_loops
async def test_closing_a_port_ends_a_pending_call(wire: str, tmp_path: Path) -> None:
    faults = WireFaults()
    async with a_device(wire, tmp_path, faults) as (port, _):
        faults.add(WireFault(port.address, FaultKind.CUT))
        task = asyncio.create_task(port.read(0, 1, within(60)))
        await asyncio.sleep(0.02)
        await port.close()
        with pytest.raises(LinkLost, match="the port was closed"):
            await task


@on_both_loops
async def test_nothing_there_is_link_lost(tmp_path: Path) -> None:
    with socket.socket() as bound:  # bound, not listening: refuses on a real loop
        bound.bind(("127.0.0.1", 0))
        tcp = ModbusTcpPort("engine", "127.0.0.1", bound.getsockname()[1])
        with pytest.raises(LinkLost, match="cannot open"):
            await tcp.connect(within(5))
        await tcp.close()
    rtu = ModbusRtuPort("gantry", str(tmp_path / "nothing"), BAUD, UNIT)
    with pytest.raises(LinkLost, match="cannot open"):
        await rtu.connect(within(5))
    await rtu.close()


@both_wires
@on_both_loops
async def test_a_device_that_goes_away_fails_the_pending_call_at_once_and_is_found_again(
    wire: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "gantry")
    faults = WireFaults()

    def serve(number: int) -> Any:
        if wire == "tcp":
            return serve_modbus_tcp(Registers(), "127.0.0.1", number, faults=faults)
        return serve_modbus_rtu(Registers(), path, BAUD, UNIT, faults=faults)

    async with serve(0) as served:
        number = served.port
        port: AnyPort = (
            ModbusTcpPort("engine", "127.0.0.1", number) if wire == "tcp" else ModbusRtuPort("gantry", path, BAUD, UNIT)
        )
        await port.connect(within(5))
        faults.add(WireFault(port.address, FaultKind.DROP, "reply", nth=1))
        pending = asyncio.create_task(port.read(0, 1, within(3600)))
        await asyncio.sleep(0.02)
    with pytest.raises(LinkLost, match="closed by the other end"):
        await pending
    with pytest.raises(LinkLost):
        await port.read(0, 1, within(0.5))
    async with serve(number):
        assert await port.read(7, 1, within(5)) == [7]
        await port.close()


# ---- TCP: what follows a timeout


@on_both_loops
async def test_a_late_answer_over_tcp_reaches_nobody(tmp_path: Path) -> None:
    faults = WireFaults()
    async with a_device("tcp", tmp_path, faults) as (port, _):
        faults.add(WireFault(port.address, FaultKind.DELAY, nth=1, delay_ns=200_000_000))
        with pytest.raises(LinkLost):
            await port.read(10, 1, within(0.05))
        started_s = asyncio.get_running_loop().time()
        assert await port.read(20, 1, within(5)) == [20]
        if isinstance(asyncio.get_running_loop(), VirtualLoop):
            assert asyncio.get_running_loop().time() - started_s < 0.01, "a new connection does not wait for the old"


@pytest.mark.parametrize("at", range(12))
@on_both_loops
async def test_a_changed_byte_in_a_tcp_answer_never_gives_another_function_or_length(at: int, tmp_path: Path) -> None:
    faults = WireFaults()
    async with a_device("tcp", tmp_path, faults) as (port, _):
        faults.add(WireFault(port.address, FaultKind.CORRUPT, nth=1, byte=at, mask=0x90))
        try:
            got = await port.read(10, 2, within(0.2))
        except (LinkLost, DeviceRefused):
            got = None
        assert got is None or (len(got) == 2 and at in (9, 10, 11, 12)), "only the data itself is unprotected"
        assert await port.read(10, 2, within(5)) == [10, 11]


# ---- RTU: the suspect link


def delayed_second_reply(path: str, delay_ns: int = 400_000_000) -> WireFaults:
    return WireFaults([WireFault(serial_address(path), FaultKind.DELAY, nth=2, delay_ns=delay_ns)])


async def stock_client(path: str) -> AsyncModbusSerialClient:
    client = AsyncModbusSerialClient(path, baudrate=BAUD, timeout=0.1, retries=0, reconnect_delay=0)
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualLoop):
        client.ctx.call_create = partial(loop.create_serial_connection, client.ctx.handle_new_connection, path)
    assert await client.connect()
    return client


@on_both_loops
async def test_the_library_alone_takes_a_late_rtu_answer_for_the_next_one(tmp_path: Path) -> None:
    """The reason for the rule. If this fails the library protects RTU now: reconsider `ModbusRtuPort`."""
    path = str(tmp_path / "gantry")
    async with serve_modbus_rtu(Registers(), path, BAUD, UNIT, faults=delayed_second_reply(path, 500_000_000)):
        client = await stock_client(path)
        assert (await client.read_holding_registers(0, count=1, device_id=UNIT)).registers == [0]
        with pytest.raises(Exception, match="No response"):
            await client.read_holding_registers(10, count=1, device_id=UNIT)
        client.ctx.comm_params.timeout_connect = 10.0
        wrong = await client.read_holding_registers(20, count=1, device_id=UNIT)
        assert wrong.registers == [10], "asked for register 20, got the value of register 10, and no error"
        client.close()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("how", ["timeout", "cancellation"])
@on_both_loops
async def test_after_a_late_rtu_answer_no_value_is_believed_before_an_echo(how: str, tmp_path: Path) -> None:
    path = str(tmp_path / "gantry")
    async with serve_modbus_rtu(Registers(), path, BAUD, UNIT, faults=delayed_second_reply(path)) as served:
        port = ModbusRtuPort("gantry", path, BAUD, UNIT, worst_reply_s=0.8)
        await port.connect(within(5))  # reply 1 is the echo, reply 2 will be late
        if how == "timeout":
            with pytest.raises(LinkLost):
                await port.read(10, 1, within(0.05))
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await port.read(10, 1, within(60))
        assert port.suspect
        with pytest.raises(LinkLost, match="suspect"):
            await port.read(20, 1, within(0.02))
        requests = served.requests
        assert await port.read(20, 1, within(5)) == [20]
        assert served.requests == requests + 2, "an echo, then the read"
        assert not port.suspect
        await port.close()


@on_both_loops
async def test_an_answer_later_than_the_worst_still_reaches_nobody(tmp_path: Path) -> None:
    """The quiet time is an estimate; the echo is the proof."""
    path = str(tmp_path / "gantry")
    async with serve_modbus_rtu(Registers(), path, BAUD, UNIT, faults=delayed_second_reply(path)):
        port = ModbusRtuPort("gantry", path, BAUD, UNIT, worst_reply_s=0.06)
        await port.connect(within(5))
        with pytest.raises(LinkLost):
            await port.read(10, 1, within(0.05))
        assert await port.read(20, 1, within(5)) == [20]
        await port.close()


@on_both_loops
async def test_every_opening_of_an_rtu_line_starts_with_an_echo(tmp_path: Path) -> None:
    path = str(tmp_path / "gantry")
    faults = WireFaults([WireFault(serial_address(path), FaultKind.CUT)])
    async with serve_modbus_rtu(Registers(), path, BAUD, UNIT, faults=faults):
        port = ModbusRtuPort("gantry", path, BAUD, UNIT)
        with pytest.raises(LinkLost, match="opening the link"):
            await port.connect(within(0.1))
        assert port.suspect
        await port.close()


@pytest.mark.parametrize("kind", [FaultKind.DROP, FaultKind.DUPLICATE, FaultKind.CORRUPT])
@pytest.mark.parametrize("direction", ["request", "reply"])
def test_whatever_happens_on_an_rtu_line_a_value_is_right_or_absent(kind: FaultKind, direction: Any) -> None:
    path = "/virtual/gantry"

    async def main(nth: int, byte: int) -> tuple[int, int]:
        fault = WireFault(serial_address(path), kind, direction, nth=nth, byte=byte, mask=0x41)
        right = absent = 0
        faults = WireFaults([fault])
        async with serve_modbus_rtu(Registers(), path, BAUD, UNIT, faults=faults):
            port = ModbusRtuPort("gantry", path, BAUD, UNIT, worst_reply_s=0.05)
            await port.connect(within(5))
            for address in range(10, 18):
                try:
                    got = await port.read(address, 1, within(0.5))
                except (LinkLost, DeviceRefused):
                    absent += 1
                else:
                    right += 1
                    assert got == [address]
            await port.close()
        assert faults.applied
        return right, absent

    outcomes = [run_virtual(main(nth, byte)) for nth in (2, 5) for byte in (range(8) if kind == "corrupt" else [0])]
    assert all(right >= 6 for right, _ in outcomes), outcomes


@pytest.mark.parametrize("kept", [0, 500_000])
@on_both_loops
async def test_an_rtu_device_that_says_everything_twice_is_believed_and_counted(
    kept: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "gantry")
    twice = WireFault(serial_address(path), FaultKind.DUPLICATE)
    torn = [WireFault(serial_address(path), FaultKind.TORN, delay_ns=kept)] if kept else []
    async with serve_modbus_rtu(Registers(), path, BAUD, UNIT, faults=WireFaults([twice, *torn])):
        port = ModbusRtuPort("gantry", path, BAUD, UNIT)
        await port.connect(within(5))
        for address in range(10, 20):
            assert await port.read(address, 2, within(0.5)) == [address, address + 1]
            assert await port.write_read(30, [address], 30, 1, within(0.5)) == [address]
        assert not port.suspect
        assert port.stale_answers >= 20
        await port.close()
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_half_a_repetition_on_an_rtu_line_is_no_repetition() -> None:
    class Stutter(WireFaults):
        """After reply 2 (the first is the echo) comes its own first half."""

        replies = 0

        def pass_on(self, address: str, direction: Any, data: bytes, t_ns: int) -> list[tuple[int, bytes]]:
            self.replies += direction == "reply"
            more = [(0, data[: len(data) // 2])] if direction == "reply" and self.replies == 2 else []
            return [(0, data), *more]

    async def main() -> None:
        path = "/virtual/gantry"
        async with serve_modbus_rtu(Registers(), path, BAUD, UNIT, faults=Stutter()) as served:
            port = ModbusRtuPort("gantry", path, BAUD, UNIT, worst_reply_s=0.05)
            await port.connect(within(5))
            assert await port.read(10, 2, within(0.5)) == [10, 11]
            requests = served.requests
            assert await port.read(20, 1, within(0.5)) == [20]
            assert served.requests == requests + 2, "an echo, then the read"
            await port.close()

    run_virtual(main())


# ---- what of the library is leaned on


def test_the_parts_of_the_library_that_the_ports_lean_on_still_exist() -> None:
    async def main() -> None:
        client = AsyncModbusSerialClient("/none", timeout=1, retries=0, reconnect_delay=0)
        assert isinstance(client.ctx, TransactionManager)
        assert isinstance(client.ctx.response_future, asyncio.Future)
        assert isinstance(client.ctx.call_create, partial)
        assert callable(client.ctx.handle_new_connection)
        client.close()

    run_real(main())
