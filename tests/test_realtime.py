"""The real clock: a room on its thread, the real-time path on its own, and real sockets between them."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.dose.acquisition import RealtimeThread
from controller.dose.memory import Monitor
from controller.dose.path import LEASE_INTERLOCKS
from drivers.errors import Refused
from drivers.wires.frames import FRAME_BYTES, FRAME_NS, SCAN_FRAME_NS, Frame
from drivers.wires.frames import decode as decode_frame
from drivers.wires.permits import KIND_DROP, KIND_PERMIT, SOURCE_CONTROLLER
from drivers.wires.realtime import RealtimeWishes, ask_realtime, kernel_drops
from interlocks.numbers import COMMANDED, LEASE_EXPIRED, STREAM_SILENT_1, STREAM_SILENT_2, STREAM_SILENT_3
from simulators.plant.state import CAUSE_DROP, CAUSE_SILENCE
from simulators.realtime import RoomThread
from simulators.room import Room
from sites.schema import Site
from tests.realtime_parts import (
    DAY_NS,
    SESSION,
    TOKEN,
    driver,
    own_site,
    path_on_sockets,
    permits_in,
    streaming_room,
    udp_listener,
    until,
    waiting,
    with_permits_to,
)
from tests.wire_parts import within

pytestmark = pytest.mark.real_clock


@pytest.fixture
def site(free_port: Callable[[], int], tmp_path: Path) -> Site:
    return own_site(free_port, tmp_path)


def threads_running() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name in ("room", "real-time path")]


async def test_frames_go_where_the_registers_say_whole_and_in_order(site: Site) -> None:
    room = Room(site, 1, boot="test")
    monitors = [driver(site, name) for name in ("electrometer_1", "electrometer_2", "scan_controller")]
    with udp_listener() as listener, RoomThread(room):
        async with room.serve():
            for device in monitors:
                await device.connect(within(60))
                await device.stream_to("127.0.0.1", listener.getsockname()[1], 1, within(60))
            datagrams: list[bytes] = []

            def enough() -> bool:
                datagrams.extend(waiting(listener))
                return len(datagrams) > 1500

            await until("1500 frames", enough)
            for device in monitors:
                await device.link.write({"stream_1_enable": False}, within(60))
            datagrams += waiting(listener)
            for device in monitors:
                await device.close()
        await asyncio.sleep(0.05)
        frames_before = int(room.plant.state["frame"])
        await until("the plant goes on", lambda: int(room.plant.state["frame"]) > frames_before + 100)
        datagrams += waiting(listener)
        await asyncio.sleep(0.05)
        assert waiting(listener) == []  # disabled destinations get nothing
    frames: dict[int, list[Frame]] = {1: [], 2: [], 3: []}
    for data in datagrams:
        frame = decode_frame(data)
        assert frame is not None
        assert len(data) == FRAME_BYTES[frame.stream]
        frames[frame.stream].append(frame)
    for stream, period_ns in ((1, FRAME_NS), (2, FRAME_NS), (3, SCAN_FRAME_NS)):
        got = frames[stream]
        assert len(got) > 200
        assert {f.sequence - got[0].sequence - n for n, f in enumerate(got)} == {0}
        assert {b.t_ns - a.t_ns for a, b in itertools.pairwise(got)} == {period_ns}
        # device time is this PC's monotonic clock, on the frames' grid
        assert got[-1].t_ns % FRAME_NS == 0
        assert got[-1].t_ns <= time.monotonic_ns()
        assert {f.boot_nonce for f in got} == {int(room.plant.state[f"nonce_{stream}"])}


async def test_permits_keep_the_chain_closed_and_their_end_opens_it(site: Site) -> None:
    with streaming_room(site) as room, path_on_sockets(site) as path:
        state = room.plant.state
        async with room.serve():
            chain = driver(site, "safety_chain")
            await chain.connect(within(60))
            await chain.open_session(SESSION, 250.0, within(60))
            state["time_out_ns"] = DAY_NS  # a stall of this PC shall not end the first half of the test
            await until("all streams are seen", lambda: path.alive)
            await chain.arm(TOKEN, within(60))
            path.permit(TOKEN)
            await until("the chain closes", lambda: state["closed"] == 1)
            before = int(state["permits"])
            await until("permits keep coming", lambda: int(state["permits"]) > before + 500)
            status = await chain.status(within(60))
            assert (status.closed, status.armed, status.permits_rejected) == (True, True, 0)
            path.withhold()
            state["time_out_ns"] = 250_000_000
            await until("the chain opens", lambda: state["closed"] == 0)
            status = await chain.status(within(60))
            assert (status.closed, status.armed, status.open_cause) == (False, False, CAUSE_SILENCE)
            path.permit(TOKEN)
            rejected = int(state["rejected"])
            await until("late permits arrive", lambda: int(state["rejected"]) > rejected + 100)
            assert state["closed"] == 0  # a permit cannot close an open chain
            assert path.trip() is None
            await chain.close()


async def test_a_trip_opens_the_chain_at_once_by_a_drop(site: Site) -> None:
    with streaming_room(site) as room, path_on_sockets(site) as path:
        state = room.plant.state
        state["session"] = SESSION
        state["time_out_ns"] = DAY_NS
        await until("all streams are seen", lambda: path.alive)
        path.permit(TOKEN)
        state["chain_command"], state["chain_command_token"] = 1, TOKEN
        state["chain_commands"] += 1
        await until("the chain closes", lambda: state["closed"] == 1)
        path.drop()
        await until("the chain opens", lambda: state["closed"] == 0)
        assert state["cause"] == CAUSE_DROP
        trip = path.trip()
        assert trip is not None
        assert trip.number == COMMANDED


async def test_permits_are_signed_and_a_drop_comes_in_three_copies(site: Site) -> None:
    with udp_listener() as listener:
        controller_site = with_permits_to(site, listener.getsockname()[1])
        with streaming_room(site), path_on_sockets(controller_site) as path:
            await until("all streams are seen", lambda: path.alive)
            assert waiting(listener) == []  # nothing leaves before permits are allowed
            path.permit(TOKEN)
            datagrams: list[bytes] = []

            def seen(kind: int, count: int) -> bool:
                datagrams.extend(waiting(listener))
                return sum(d[5] == kind for d in datagrams) >= count

            await until("permits", lambda: seen(KIND_PERMIT, 300))
            path.drop()
            async with asyncio.timeout(60):
                await path.changed()
            await until("drops", lambda: seen(KIND_DROP, 3))
            alive = int(path.monitor.state["alive"])
            await until("the loop goes on", lambda: int(path.monitor.state["alive"]) > alive + 300)
            datagrams += waiting(listener)
        permits = permits_in(datagrams, site)
    kinds = [p.kind for p in permits]
    assert kinds == [KIND_PERMIT] * (len(kinds) - 3) + [KIND_DROP] * 3  # after the drop nothing
    assert {(p.source, p.session_nonce, p.arm_token) for p in permits} == {(SOURCE_CONTROLLER, SESSION, TOKEN)}
    sequences = [p.sequence for p in permits[:-2]]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    assert {p.reason for p in permits[-3:]} == {COMMANDED}
    assert permits[-1] == permits[-2] == permits[-3]


async def test_a_silent_room_trips_and_drops(site: Site) -> None:
    with udp_listener() as listener:
        controller_site = with_permits_to(site, listener.getsockname()[1])
        with path_on_sockets(controller_site) as path:
            with streaming_room(site):
                await until("all streams are seen", lambda: path.alive)
                path.permit(TOKEN)
                permits_before = int(path.monitor.state["permits"])
                await until("permits", lambda: int(path.monitor.state["permits"]) > permits_before + 20)
            path.monitor.limits["stale_ns"] = 200_000_000
            await until("the silence latches", path.trip)
            datagrams: list[bytes] = []

            def dropped() -> bool:
                datagrams.extend(waiting(listener))
                return any(d[5] == KIND_DROP for d in datagrams)

            await until("a drop", dropped)
            trip = path.trip()
            assert trip is not None
            assert trip.number in (STREAM_SILENT_1, STREAM_SILENT_2, STREAM_SILENT_3)
            assert trip.limit == 200.0
            assert trip.value > 200.0
            assert permits_in(datagrams, site)[-1].reason == trip.number


async def test_a_lease_that_ends_stops_permits_and_then_trips(site: Site) -> None:
    with streaming_room(site), path_on_sockets(site) as path:
        state = path.monitor.state
        path.monitor.limits["lease_grace_ns"] = DAY_NS
        await until("all streams are seen", lambda: path.alive)
        path.permit(TOKEN)
        before = int(state["permits"])
        await until("permits", lambda: int(state["permits"]) > before + 20)
        path.renew(LEASE_INTERLOCKS, time.monotonic_ns() - 1)
        alive = int(state["alive"])
        await until("a turn later", lambda: int(state["alive"]) > alive + 2)
        stopped = int(state["permits"])
        frames = int(path.monitor.streams[1]["frames"])
        await until("frames go on", lambda: int(path.monitor.streams[1]["frames"]) > frames + 500)
        assert int(state["permits"]) == stopped
        assert path.trip() is None
        path.monitor.limits["lease_grace_ns"] = 1
        await until("the lease is missed", path.trip)
        trip = path.trip()
        assert trip is not None
        assert trip.number == LEASE_EXPIRED


async def test_strangers_on_the_port_are_counted_and_do_no_harm(site: Site) -> None:
    with path_on_sockets(site) as path, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        where = ("127.0.0.1", site.streams.frames.port)
        state = path.monitor.state
        for data in (b"", b"short", b"x" * 200, b"SPW1" + b"\1\1" + bytes(70), bytes(4000)):
            stranger.sendto(data, where)
        await until("five strangers", lambda: state["foreign"] + state["torn"] + state["corrupt"] == 5)
        assert (int(state["foreign"]), int(state["torn"]), int(state["corrupt"])) == (2, 3, 0)
        assert not path.alive


async def test_a_chain_that_does_not_listen_is_counted_and_the_loop_goes_on(site: Site) -> None:
    with udp_listener() as listener:
        nobody = listener.getsockname()[1]
    with streaming_room(site), path_on_sockets(with_permits_to(site, nobody)) as path:
        await until("all streams are seen", lambda: path.alive)
        path.permit(TOKEN)
        await until("refusals", lambda: int(path.monitor.state["send_errors"]) > 10)
        frames = int(path.monitor.streams[1]["frames"])
        await until("frames go on", lambda: int(path.monitor.streams[1]["frames"]) > frames + 100)


async def test_threads_end_with_their_blocks_also_by_an_error(site: Site) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), streaming_room(site), path_on_sockets(site) as path:  # noqa: PT012
            await until("all streams are seen", lambda path=path: path.alive)
            assert sorted(threads_running()) == ["real-time path", "room"]
            raise ZeroDivisionError
        assert threads_running() == []


async def test_taken_addresses_are_refused_and_named(site: Site) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", site.streams.permits.port))
        with pytest.raises(Refused, match=rf"udp://127.0.0.1:{site.streams.permits.port}: .*Address already in use"):
            RoomThread(Room(site, 1)).__enter__()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", site.streams.frames.port))
        with pytest.raises(Refused, match=rf"udp://127.0.0.1:{site.streams.frames.port}: .*Address already in use"):
            RealtimeThread(site, Monitor(), lambda: None).__enter__()
    assert threads_running() == []


async def test_a_simulated_room_leaves_the_permits_of_a_real_chain_alone(site: Site) -> None:
    real = {"safety_chain": site.devices.safety_chain.model_copy(update={"kind": "real"})}
    site = site.model_copy(update={"devices": site.devices.model_copy(update=real)})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as chain, RoomThread(Room(site, 1)) as thread:
        chain.bind(("127.0.0.1", site.streams.permits.port))
        await until("the plant runs all the same", lambda: thread.figures()["frames"] > 100)


async def test_a_thread_reports_what_it_was_granted(site: Site) -> None:
    monitor = Monitor()
    with RealtimeThread(site, monitor, lambda: None) as thread:
        assert thread.granted["timer_slack_ns"] == 1
        assert int(str(thread.granted["receive_buffer_bytes"])) > 100_000
        assert thread.drops() == 0
    # asked in a thread that ends: this one keeps what it has
    reports: list[dict[str, object]] = []
    asking = threading.Thread(target=lambda: reports.append(ask_realtime(RealtimeWishes(fifo_priority=1, cpu=4095))))
    asking.start()
    asking.join()
    assert str(reports[0]["cpu"]).startswith("not granted: Invalid argument")
    assert reports[0]["fifo_priority"] == 1 or str(reports[0]["fifo_priority"]).startswith("not granted: ")


def test_datagrams_that_the_kernel_threw_away_are_counted() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as full, udp_listener() as sender:
        full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        full.bind(("127.0.0.1", 0))
        full.setblocking(False)
        for _ in range(500):
            sender.sendto(bytes(1000), full.getsockname())
        dropped = kernel_drops(full)
        assert dropped > 400
        assert dropped + len(waiting(full)) == 500
