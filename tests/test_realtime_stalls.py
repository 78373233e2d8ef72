"""Protection does not depend on Python: the interpreter's lock is held, asyncio stands, the process stands.

Nothing here is timed. What is asserted is order: which datagram had left, by the kernel's stamp or its own time, before
which other thing happened; and what was or was not earned by frames of which device time.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controller.dose.path import LEASE_DELIVERY, LEASE_INTERLOCKS, MonitorPath
from drivers.wires.frames import FRAME_NS
from drivers.wires.permits import KIND_DROP, KIND_PERMIT, Permit
from interlocks.numbers import FIELD_DOSE_PRIMARY, FRAME_LOSS_1, FRAME_LOSS_2, FRAME_LOSS_3, LEASE_EXPIRED
from simulators.plant.state import COUNT_UNIT
from simulators.room import Room
from sites.loader import effective_config
from sites.schema import Site
from tests.reactor_process import FRAME_AGE_MS
from tests.real_rooms import ROOT, stands_still
from tests.realtime_parts import (
    DAY_NS,
    TOKEN,
    WAIT_S,
    own_site,
    path_on_sockets,
    permits_in,
    streaming_room,
    udp_listener,
    until,
    waiting,
    with_permits_to,
)

pytestmark = [pytest.mark.real_clock, pytest.mark.timeout(400)]  # the first run on a PC compiles

SO_TIMESTAMPNS = 35  # asm-generic/socket.h
SO_ATTACH_FILTER = 26
ATTEMPTS = 3
BACKLOG_BYTES = 4_000_000
"""Of a receive buffer: twice what 50 ms of frames take."""
HOLD_MS = 20_000
"""The longest that a test holds the lock for a drop that does not come."""
NEVER_S = 1e6


@pytest.fixture
def site(free_port: Callable[[], int], tmp_path: Path) -> Site:
    return own_site(free_port, tmp_path)


class PollDescriptor(ctypes.Structure):
    """Struct pollfd of poll.h."""

    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class LockHolder:
    """Calls of the C library that keep the interpreter's lock while they wait: `ctypes.PyDLL` does not let go of it."""

    def __init__(self) -> None:
        self._libc = ctypes.PyDLL(None)

    def until_readable(self, sock: socket.socket, ms: int = HOLD_MS) -> bool:
        descriptor = PollDescriptor(sock.fileno(), select.POLLIN, 0)
        return bool(self._libc.poll(ctypes.byref(descriptor), 1, ms))

    def for_us(self, us: int) -> None:
        self._libc.usleep(us)


@contextmanager
def nobody_else_runs() -> Iterator[list[int]]:
    """No thread may ask for the lock; yields the times at which another Python thread ran all the same."""
    ran_ns: list[int] = []
    end = threading.Event()

    def witness() -> None:
        while not end.is_set():
            ran_ns.append(time.time_ns())
            time.sleep(0.0005)

    thread = threading.Thread(target=witness, name="witness")
    before = sys.getswitchinterval()
    thread.start()
    try:
        while not ran_ns:
            time.sleep(0.001)
        sys.setswitchinterval(NEVER_S)
        yield ran_ns
    finally:
        sys.setswitchinterval(before)
        end.set()
        thread.join()


class _Program(ctypes.Structure):
    """Struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def take_only_drops(listener: socket.socket) -> None:
    """Have the kernel throw every datagram away that is no drop: then readable means dropped."""
    kind_at = 8 + 5  # behind the UDP header
    instructions = b"".join(
        struct.pack("@HBBI", *words)
        for words in (
            (0x30, 0, 0, kind_at),  # load the byte
            (0x15, 0, 1, KIND_DROP),  # equal: go on; else skip one
            (0x06, 0, 0, 0xFFFF),  # keep
            (0x06, 0, 0, 0),  # throw away
        )
    )
    program = _Program(len(instructions) // 8, instructions)
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(program))


def stamped(listener: socket.socket) -> tuple[int, bytes]:
    """One datagram, and when the kernel received it: ns of CLOCK_REALTIME."""
    data, ((_, kind, stamp),), _, _ = listener.recvmsg(2048, 128)
    assert kind == SO_TIMESTAMPNS
    seconds, ns = struct.unpack("@ll", stamp)
    return seconds * 1_000_000_000 + ns, data


def begin_over_dose(room: Room) -> None:
    """From its next frame on electrometer 1 counts ten millions a second: an assignment, which keeps the lock."""
    room.plant.parameters["pedestal_1"] = 100 * COUNT_UNIT


async def limit_the_field(path: MonitorPath) -> None:
    """A field begins, whose limit the over-dose passes with its first frame."""
    control, state = path.monitor.control, path.monitor.state
    state["request_off_ns"] = time.monotonic_ns() + DAY_NS  # never long enough ago for counts to pass for a pedestal
    path.monitor.limits["field_counts_1"] = 500.0
    control["clear"] += 1
    wanted = int(control["clear"])
    await until("a new field", lambda: int(state["clear_seen"]) == wanted)


@contextmanager
def permitted_room(site: Site) -> Iterator[tuple[Room, MonitorPath, socket.socket]]:
    """A room, the path on its thread, and a listener in the chain's place."""
    with (
        udp_listener() as chain,
        streaming_room(site) as room,
        path_on_sockets(with_permits_to(site, chain.getsockname()[1])) as path,
    ):
        yield room, path, chain


async def flowing(path: MonitorPath) -> None:
    """Permits leave."""
    await until("all streams are seen", lambda: path.alive)
    path.permit(TOKEN)
    before = int(path.monitor.state["permits"])
    await until("permits", lambda: int(path.monitor.state["permits"]) > before + 200)


def a_call_keeps_the_lock(holder: LockHolder, chain: socket.socket) -> None:
    """It waits for the drop, then for another 200 ms."""
    holder.until_readable(chain)
    holder.for_us(200_000)


def collections_keep_the_lock(holder: LockHolder, chain: socket.socket) -> None:
    """Full collections of a large heap, one after the other, until the drop is there."""
    heap = [[k] for k in range(300_000)]
    for _ in range(1000):
        gc.collect()
        if holder.until_readable(chain, 0):
            break
    assert len(heap) == 300_000


@pytest.mark.parametrize("stall", [a_call_keeps_the_lock, collections_keep_the_lock])
async def test_a_drop_leaves_while_the_interpreter_is_locked(
    site: Site, stall: Callable[[LockHolder, socket.socket], None]
) -> None:
    holder = LockHolder()
    with permitted_room(site) as (room, path, chain):
        take_only_drops(chain)
        chain.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        await flowing(path)
        await limit_the_field(path)
        gc.collect()  # what earlier tests left may have finalizers that let go of the lock
        with nobody_else_runs() as ran_ns:
            begun_ns = time.time_ns()
            begin_over_dose(room)
            stall(holder, chain)
            ended_ns = time.time_ns()
        assert [t for t in ran_ns if begun_ns < t < ended_ns] == []  # the lock was ours all the time
        left_ns, drop = stamped(chain)
        assert begun_ns < left_ns < ended_ns
        (decoded,) = permits_in([drop], site)
        assert (decoded.kind, decoded.reason) == (KIND_DROP, FIELD_DOSE_PRIMARY)
        trip = path.trip()
        assert trip is not None
        assert trip.number == FIELD_DOSE_PRIMARY


async def test_permits_end_with_their_lease_while_asyncio_stands_and_then_a_drop_leaves(site: Site) -> None:
    lease_ns = 100_000_000
    renewed_ns = 0
    with permitted_room(site) as (_, path, chain):
        path.monitor.limits["lease_grace_ns"] = DAY_NS

        async def renew() -> None:
            nonlocal renewed_ns
            while True:
                renewed_ns = time.monotonic_ns()
                for lease in (LEASE_INTERLOCKS, LEASE_DELIVERY):
                    path.renew(lease, renewed_ns + lease_ns)
                await asyncio.sleep(0.04)

        task = asyncio.create_task(renew(), name="leases")
        try:
            await flowing(path)
            waiting(chain)
            stands_until(lambda: time.monotonic_ns() > renewed_ns + lease_ns)
            stands_until(frames_more(path, 500))
            ended_ns = renewed_ns + lease_ns
            late = [p for p in permits_in(waiting(chain), site) if p.t_ns > ended_ns + FRAME_NS]
            assert late == []
            permits_after = int(path.monitor.state["permits"])
            assert path.trip() is None
            # nothing but the coroutine was missing
            await until("permits with the renewed lease", lambda: int(path.monitor.state["permits"]) > permits_after)
            path.monitor.limits["lease_grace_ns"] = 1
            stands_until(lambda: path.trip() is not None)
            trip = path.trip()
            assert trip is not None
            assert trip.number == LEASE_EXPIRED
            stands_until(lambda: int(path.monitor.state["drops"]) == 1)
            assert [p.reason for p in permits_in(waiting(chain), site) if p.kind == KIND_DROP] == [LEASE_EXPIRED] * 3
        finally:
            task.cancel()
            await asyncio.wait((task,))


def stands_until(condition: Callable[[], bool]) -> None:
    """The loop's thread does not return before the condition holds: asyncio stands still meanwhile."""
    for _ in range(20_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("asyncio stood for 20 s in vain")


def frames_more(path: MonitorPath, count: int) -> Callable[[], bool]:
    """So many frames of electrometer 1 later."""
    wanted = int(path.monitor.streams[1]["frames"]) + count
    return lambda: int(path.monitor.streams[1]["frames"]) >= wanted


class Reactor:
    """The real-time path in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, command: str = "state") -> dict[str, Any]:
        """Give it a command; returns its state."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command.encode() + b"\n")
        state: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return state

    async def until(self, what: str, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Ask until the condition holds; returns the state in which it did."""
        state = await self.ask()
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition(state):
                    await asyncio.sleep(0.01)
                    state = await self.ask()
        except TimeoutError:
            raise AssertionError(f"waited {WAIT_S} s in vain: {what}: {state}") from None
        return state


@asynccontextmanager
async def reactor_process(site: Site, folder: Path) -> AsyncIterator[Reactor]:
    """Run it while the block runs."""
    config = folder / "site.json"
    config.write_text(effective_config(site), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.reactor_process", str(config)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield Reactor(process)
    finally:
        process.kill()
        await process.wait()


async def stopped_for(room: Room, pid: int, frames: int) -> tuple[int, int]:
    """Stop the process until the room has made so many frames; returns from when to when it stood, CLOCK_MONOTONIC."""
    os.kill(pid, signal.SIGSTOP)
    try:
        await until("it stands still", lambda: stands_still(pid))
        from_ns = time.monotonic_ns()
        wanted = int(room.plant.state["frame"]) + frames
        await until("frames are made", lambda: int(room.plant.state["frame"]) >= wanted)
        # a room that was behind makes up for it in less time
        await until("their time is over", lambda: time.monotonic_ns() >= from_ns + frames * FRAME_NS)
        return from_ns, time.monotonic_ns()
    finally:
        os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop of the path's process, its state before and after, and the permits that left from the one to the other."""

    from_ns: int
    until_ns: int
    before: dict[str, Any]
    after: dict[str, Any]
    permits: list[Permit]


async def stopped_path(site: Site, folder: Path) -> Stop:
    """Stop a path that sends permits for 50 ms."""
    with udp_listener() as chain, streaming_room(site) as room:
        async with reactor_process(with_permits_to(site, chain.getsockname()[1]), folder) as reactor:
            permitted = await reactor.until("all streams are seen", lambda state: state["alive"])
            if permitted["receive_buffer_bytes"] < BACKLOG_BYTES:
                pytest.skip(f"net.core.rmem_max is too small: {BACKLOG_BYTES} bytes hold the backlog of this test")
            await reactor.ask("permit")
            before = await reactor.until("permits", lambda s: s["permits"] > permitted["permits"] + 200)
            waiting(chain)
            from_ns, until_ns = await stopped_for(room, reactor.pid, 500)
            await reactor.until("the backlog is read", lambda s: s["streams"]["1"]["t_ns"] > until_ns)
            begun = await reactor.ask()
            after = await reactor.until(
                "permits again, or a trip", lambda s: s["permits"] > begun["permits"] + 200 or s["trip"]
            )
        return Stop(from_ns, until_ns, before, after, permits_in(waiting(chain), site))


async def test_the_backlog_of_a_stopped_path_is_integrated_and_earns_no_permit(site: Site, tmp_path: Path) -> None:
    for _ in range(ATTEMPTS):
        stop = await stopped_path(site, tmp_path)
        if stop.after["kernel_drops"] == 0:  # else this PC was so busy that 50 ms became more than the buffer holds
            break
    before, after = stop.before["streams"], stop.after["streams"]
    assert stop.after["kernel_drops"] == 0
    # frames of the stop came to be judged when it was over, whenever they were made
    age_ns = round(FRAME_AGE_MS * 1e6) + after["1"]["offset_ns"]
    too_old = (stop.until_ns - age_ns - stop.from_ns) // FRAME_NS
    assert too_old > 300
    assert after["1"]["late"] - before["1"]["late"] >= too_old
    assert {n: after[n]["lost"] for n in after} == {"1": 0, "2": 0, "3": 0}
    assert stop.after["trip"] == 0
    frames = after["1"]["frames"] - before["1"]["frames"]
    assert frames > 500  # all of them were integrated
    assert stop.after["permits"] - stop.before["permits"] <= frames - too_old
    assert {p.kind for p in stop.permits} == {KIND_PERMIT}
    assert max(p.age_us for p in stop.permits) <= FRAME_AGE_MS * 1e3
    assert [p for p in stop.permits if stop.from_ns < p.t_ns < stop.until_ns] == []


async def test_what_the_kernel_threw_away_is_counted_and_trips(site: Site, tmp_path: Path) -> None:
    with udp_listener() as chain, streaming_room(site) as room:
        async with reactor_process(with_permits_to(site, chain.getsockname()[1]), tmp_path) as reactor:
            await reactor.until("all streams are seen", lambda state: state["alive"])
            await reactor.ask("permit")
            await stopped_for(room, reactor.pid, 10_000)
            state = await reactor.until("a trip", lambda s: s["trip"])
            assert state["kernel_drops"] > 1000
            assert state["trip"] in (FRAME_LOSS_1, FRAME_LOSS_2, FRAME_LOSS_3)
            # every datagram that the kernel threw away is a gap in some stream's numbers
            await reactor.until(
                "each is accounted for", lambda s: sum(r["lost"] for r in s["streams"].values()) == s["kernel_drops"]
            )
        assert KIND_DROP in {p.kind for p in permits_in(waiting(chain), site)}
