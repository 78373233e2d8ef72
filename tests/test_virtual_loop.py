"""The virtual loop: time that costs nothing, the same order each run, and wires that behave like sockets."""

from __future__ import annotations

import asyncio
import inspect
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from drivers.wires.latency import WireLatency, seeded_latency
from drivers.wires.virtual_loop import VirtualDeadlockError, VirtualLoop, run_virtual


def clock() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


# ---- time


def test_an_hour_of_sleep_passes_at_once_and_to_the_nanosecond() -> None:
    async def main() -> int:
        await asyncio.sleep(3600.000000001)
        return clock().time_ns()

    before = time.monotonic()
    assert run_virtual(main()) == 3_600_000_000_001
    assert time.monotonic() - before < 600  # it did not sleep; no statement about speed


def test_timers_on_the_same_nanosecond_run_in_the_order_they_were_set() -> None:
    async def main() -> list[int]:
        seen: list[int] = []
        for number in range(50):
            clock().call_later(1.0, seen.append, number)
        clock().call_at_ns(999_999_999, seen.append, -1)
        await asyncio.sleep(1.0)
        return seen

    assert run_virtual(main()) == [-1, *range(50)]


@given(st.floats(min_value=1e-9, max_value=1e6, allow_nan=False))
def test_a_timer_never_fires_before_its_time(when: float) -> None:
    async def main() -> float:
        done = clock().create_future()
        clock().call_at(when, done.set_result, None)
        await done
        return clock().time()

    reached = run_virtual(main())
    assert when <= reached <= when + 2e-9 + when * 1e-15


def test_a_wait_shorter_than_a_nanosecond_still_makes_progress() -> None:
    async def main() -> int:
        await asyncio.sleep(1e-12)
        return clock().time_ns()

    assert run_virtual(main()) == 1


def test_a_cancelled_timer_neither_runs_nor_stops_the_clock() -> None:
    async def main() -> tuple[int, list[int], int]:
        world_stops: list[int] = []

        class Recorder:
            def run_to(self, t_ns: int) -> int:
                world_stops.append(t_ns)
                return t_ns

            def alive(self) -> bool:
                return False

        clock().set_world(Recorder())
        ran: list[int] = []
        timers = [clock().call_later(0.001 * number, ran.append, number) for number in range(1, 1001)]
        for timer in timers:
            timer.cancel()
        await asyncio.sleep(5.0)
        return clock().time_ns(), ran, len(world_stops)

    assert run_virtual(main()) == (5_000_000_000, [], 1)


def test_timeouts_are_virtual_and_leave_the_task_usable() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60.0):
                await clock().create_future()
        await asyncio.sleep(1.0)
        return clock().time()

    assert run_virtual(main()) == 61.0


# ---- the world


class Bell:
    """A world that rings at given times (ns)."""

    def __init__(self, times_ns: list[int]) -> None:
        self.times_ns = times_ns
        self.heard: list[int] = []
        self.calls: list[int] = []

    def alive(self) -> bool:
        return bool(self.times_ns)

    def run_to(self, t_ns: int) -> int:
        self.calls.append(t_ns)
        if self.times_ns and self.times_ns[0] <= t_ns:
            loop = clock()
            loop.call_soon(lambda: self.heard.append(loop.time_ns()))
            return self.times_ns.pop(0)
        return t_ns


def test_an_event_of_the_world_is_seen_at_its_own_time_between_timers() -> None:
    bell = Bell([1_500, 2_000, 999_999_999])

    async def main() -> int:
        await asyncio.sleep(1e-6)
        await asyncio.sleep(2.0)
        return clock().time_ns()

    assert run_virtual(main(), bell) == 2_000_001_000
    assert bell.heard == [1_500, 2_000, 999_999_999]
    assert bell.calls[0] == 1_000, "the loop must run the world exactly to its next timer"


def test_a_living_world_runs_on_when_no_timer_is_set() -> None:
    async def main() -> int:
        rung = clock().create_future()

        class LateBell(Bell):
            def run_to(self, t_ns: int) -> int:
                reached = super().run_to(t_ns)
                if not self.times_ns and not rung.done():
                    clock().call_soon(rung.set_result, None)
                return reached

        clock().set_world(LateBell([7_300_000_000]))
        await rung
        return clock().time_ns()

    assert run_virtual(main()) == 7_300_000_000


@pytest.mark.parametrize("reached_ns", [-1, 10_000_000_000])
def test_a_world_that_leaves_its_bounds_is_refused(reached_ns: int) -> None:
    class Liar(Bell):
        def run_to(self, t_ns: int) -> int:
            return reached_ns

    with pytest.raises(RuntimeError, match="wanted at most 1000000000 ns"):
        run_virtual(asyncio.sleep(1.0), Liar([]))


def test_a_world_that_stops_without_an_event_is_refused() -> None:
    class Lazy(Bell):
        def run_to(self, t_ns: int) -> int:
            return clock().time_ns()

    with pytest.raises(RuntimeError, match="without an event"):
        run_virtual(asyncio.sleep(1.0), Lazy([]))


# ---- what cannot go on, says so


def test_a_deadlock_names_the_tasks_and_where_they_wait() -> None:
    async def waits_for_nothing() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits_for_nothing(), name="poll-gantry")

    with pytest.raises(VirtualDeadlockError, match=r"(?s)poll-gantry: Event\.wait .*locks\.py"):
        run_virtual(main())


def test_a_livelock_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivers.wires.virtual_loop.LIVELOCK_TURNS", 1000)

    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(VirtualDeadlockError, match="1000 turns without progress"):
        run_virtual(main())


def test_tasks_that_outlive_the_main_coroutine_are_named() -> None:
    async def main() -> None:
        main.task = asyncio.create_task(asyncio.sleep(9.0), name="left-behind")  # type: ignore[attr-defined]
        await asyncio.sleep(1.0)

    with pytest.warns(ResourceWarning, match="left-behind at sleep"):
        run_virtual(main())


def test_other_threads_and_datagrams_and_names_are_refused() -> None:
    async def main() -> None:
        loop = clock()
        with pytest.raises(NotImplementedError, match="no datagrams"):
            await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        with pytest.raises(NotImplementedError, match="name service"):
            await loop.getaddrinfo("localhost", 80)
        refused: list[str] = []

        def intrude() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except RuntimeError as exc:
                refused.append(str(exc))

        import threading  # noqa: PLC0415

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        assert refused == ["the virtual loop takes no callbacks from other threads"]

    run_virtual(main())


def test_work_for_threads_runs_at_once_in_this_thread() -> None:
    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        assert await asyncio.to_thread(lambda: 42) == 42
        return clock().time_ns()

    assert run_virtual(main()) == 0


# ---- determinism


async def a_busy_minute() -> list[tuple[int, str, bytes]]:
    """Six clients on three servers, talking at random; what each end saw, and when."""
    seen: list[tuple[int, str, bytes]] = []
    loop = clock()

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            seen.append((loop.time_ns(), "server", data))
            self.transport.write(data)

    async def client(number: int) -> None:
        generator = random.Random(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", 7000 + number % 3)
        for count in range(20):
            writer.write(f"{number}/{count}".encode())
            seen.append((loop.time_ns(), f"client {number}", await reader.read(100)))
            await asyncio.sleep(generator.random())
        writer.close()
        await writer.wait_closed()

    servers = [await loop.create_server(Echo, "127.0.0.1", 7000 + number) for number in range(3)]
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(client(number))
    for server in servers:
        server.close()
    return seen


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    first = run_virtual(a_busy_minute(), seed=1)
    assert len(first) == 240
    assert run_virtual(a_busy_minute(), seed=1) == first
    assert run_virtual(a_busy_minute(), seed=2) != first


CANCEL_ORDER = """
import asyncio, hashlib
from drivers.wires.virtual_loop import run_virtual
order = []
async def one(n):
    try:
        await asyncio.sleep(100)
    finally:
        order.append(n)
async def main():
    junk = [bytearray(n * 37 % 4096) for n in range(hash("x") % 1000)]
    try:
        async with asyncio.TaskGroup() as group:
            for n in range(300):
                group.create_task(one(n))
            await asyncio.sleep(1)
            raise ValueError
    except ExceptionGroup:
        pass
run_virtual(main())
print(order)
"""


def test_a_task_group_cancels_its_members_in_the_same_order_in_every_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", CANCEL_ORDER],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "random")
    ]
    assert runs[0] == runs[1] == runs[2]
    assert sorted(eval(runs[0])) == list(range(300))


def test_draws_of_one_wire_do_not_shift_those_of_another() -> None:
    alone = seeded_latency(5)
    together = seeded_latency(5)
    expected = [alone("tcp://a:1") for _ in range(10)]
    got = []
    for _ in range(10):
        together("tcp://b:2")
        got.append(together("tcp://a:1"))
    assert got == expected
    assert all(450_000 <= draw <= 550_000 for draw in got)
    assert seeded_latency(5, wires={"tcp://a:1": WireLatency(7.0)})("tcp://a:1") == 7_000


# ---- wires


class Recorder(asyncio.Protocol):
    """Remembers what its transport told it."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.lost = asyncio.get_running_loop().create_future()
        self.keep_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.events.append(data)

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(type(exc))
        if not self.lost.done():
            self.lost.set_result(exc)


async def a_pair() -> tuple[Recorder, Recorder]:
    servers: list[Recorder] = []

    def factory() -> Recorder:
        servers.append(Recorder())
        return servers[-1]

    await clock().create_server(factory, "127.0.0.1", 5000)
    _, client = await clock().create_connection(Recorder, "localhost", 5000)
    return client, servers[0]


def test_bytes_arrive_in_order_after_the_latency_even_if_it_varies() -> None:
    async def main() -> None:
        client, server = await a_pair()
        pieces = [bytes([number]) for number in range(200)]
        for piece in pieces:
            client.transport.write(piece)
        assert server.events == []
        await asyncio.sleep(0.0004)
        assert server.events == []
        await asyncio.sleep(0.001)
        assert server.events == pieces

    run_virtual(main(), tcp=WireLatency(500.0, 0.9), seed=3)


def test_closing_delivers_what_was_written_then_the_end() -> None:
    async def main() -> None:
        client, server = await a_pair()
        client.transport.write(b"last words")
        client.transport.close()
        client.transport.write(b"too late")
        assert client.transport.is_closing()
        await server.lost
        assert server.events == [b"last words", "eof", type(None)]
        assert client.events == [type(None)]

    run_virtual(main())


def test_half_closing_keeps_the_other_direction_open() -> None:
    async def main() -> None:
        client, server = await a_pair()
        server.keep_open = True
        client.transport.write_eof()
        with pytest.raises(RuntimeError):
            client.transport.write(b"x")
        await asyncio.sleep(1.0)
        server.transport.write(b"answer")
        server.transport.close()
        await client.lost
        assert client.events == [b"answer", "eof", type(None)]

    run_virtual(main())


def test_aborting_resets_the_other_end() -> None:
    async def main() -> None:
        client, server = await a_pair()
        client.transport.abort()
        assert isinstance(await server.lost, ConnectionResetError)

    run_virtual(main())


def test_a_paused_reader_slows_the_writer_and_loses_nothing() -> None:
    async def main() -> None:
        client, server = await a_pair()
        server.transport.pause_reading()
        for _ in range(10):
            client.transport.write(b"x" * 10_000)
        assert client.events == ["pause"]
        await asyncio.sleep(1.0)
        assert server.events == []
        assert client.transport.get_write_buffer_size() == 100_000
        server.transport.resume_reading()
        await asyncio.sleep(1.0)
        assert server.events == [b"x" * 10_000] * 10
        assert client.events == ["pause", "resume"]

    run_virtual(main())


def test_a_protocol_that_fails_ends_its_connection_and_is_reported() -> None:
    async def main() -> None:
        reports: list[dict[str, object]] = []
        clock().set_exception_handler(lambda _, context: reports.append(context))
        client, server = await a_pair()

        def fail(data: bytes) -> None:
            raise ZeroDivisionError

        server.data_received = fail  # type: ignore[method-assign]
        client.transport.write(b"x")
        assert isinstance(await client.lost, ConnectionResetError)
        assert isinstance(await server.lost, ZeroDivisionError)
        assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]

    run_virtual(main())


def test_addresses_refuse_and_are_taken_as_on_a_network() -> None:
    async def main() -> None:
        loop = clock()
        with pytest.raises(ConnectionRefusedError, match=r"tcp://127\.0\.0\.1:5000"):
            await loop.create_connection(Recorder, "127.0.0.1", 5000)
        server = await loop.create_server(Recorder, "127.0.0.1", 5000)
        with pytest.raises(OSError, match="already in use"):
            await loop.create_server(Recorder, "localhost", 5000)
        transport, _ = await loop.create_connection(Recorder, "127.0.0.1", 5000)
        assert transport.get_extra_info("peername") == ("127.0.0.1", 5000)
        plug = transport.get_extra_info("socket")
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert plug.getsockname() == transport.get_extra_info("sockname")
        server.close()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Recorder, "127.0.0.1", 5000)
        anywhere = await loop.create_server(Recorder, "0.0.0.0", 0)
        await loop.create_connection(Recorder, "127.0.0.1", anywhere.sockets[0].getsockname()[1])

    run_virtual(main())


def test_a_connection_given_up_half_way_is_reset_at_the_server() -> None:
    async def main() -> None:
        servers: list[Recorder] = []

        def factory() -> Recorder:
            servers.append(Recorder())
            return servers[-1]

        await clock().create_server(factory, "127.0.0.1", 5000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0006):
                await clock().create_connection(Recorder, "127.0.0.1", 5000)
        assert isinstance(await servers[0].lost, ConnectionResetError)

    run_virtual(main(), tcp=WireLatency(500.0))


def test_a_serial_line_is_exclusive_and_hangs_up_with_its_device() -> None:
    async def main() -> None:
        loop = clock()
        with pytest.raises(FileNotFoundError):
            await loop.create_serial_connection(Recorder, "/dev/gantry")
        device_end, device = await loop.create_serial_server(Recorder, "/dev/gantry", baudrate=9600)
        device_end.write(b"to nobody")
        _, client = await loop.create_serial_connection(Recorder, "/dev/gantry", baudrate=9600)
        with pytest.raises(OSError, match="already open"):
            await loop.create_serial_connection(Recorder, "/dev/gantry")
        client.transport.close()
        await client.lost
        _, client = await loop.create_serial_connection(Recorder, "/dev/gantry", baudrate=9600)
        client.transport.write(b"\x00" * 96)
        await asyncio.sleep(0.1)
        assert device.events == [], "96 bytes at 9600 baud take 0.1 s"
        await asyncio.sleep(0.004)
        assert device.events == [b"\x00" * 96], "a device on a line does not notice who comes and goes"
        device_end.close()
        assert isinstance(await client.lost, OSError)
        assert client.events == [OSError]

    run_virtual(main())


# ---- the library on it, and what of asyncio it leans on


@pytest.mark.parametrize("debug", [False, True])
def test_the_library_runs_unchanged_on_it(debug: bool) -> None:
    async def main() -> list[int]:
        store = SimDevice(0, simdata=[SimData(0, count=200, values=7, datatype=DataType.REGISTERS)])
        server = ModbusTcpServer(store, address=("127.0.0.1", 5020))
        await server.serve_forever(background=True)
        client = AsyncModbusTcpClient("127.0.0.1", port=5020, timeout=1, retries=0, reconnect_delay=0)
        assert await client.connect()
        await client.write_register(11, 9)
        registers = (await client.read_holding_registers(10, count=3)).registers
        client.close()
        await server.shutdown()  # type: ignore[no-untyped-call]
        return list(registers)

    assert run_virtual(main(), debug=debug) == [7, 9, 7]


def test_the_private_parts_of_asyncio_that_are_overridden_still_exist() -> None:
    base = asyncio.BaseEventLoop
    for name in ("_run_once", "_timer_handle_cancelled", "_write_to_self", "_check_closed"):
        assert callable(getattr(base, name))
    loop = VirtualLoop()
    assert loop._ready == type(loop._ready)()
    assert loop._stopping is False
    loop.close()
    assert "self._run_once()" in inspect.getsource(base.run_forever)
    assert "_timer_handle_cancelled" in inspect.getsource(asyncio.TimerHandle.cancel)
