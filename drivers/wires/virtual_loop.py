"""An asyncio event loop whose clock is not real: idle time costs nothing, and every run is the same run.

Time is an integer of nanoseconds. When no callback is ready, the loop asks its `World` to run to the next timer; the
world may stop earlier because something happened that a coroutine must see (it then has called `loop.call_soon`),
and the loop's clock becomes the time that the world reached. Nothing waits for the wall clock, so sleeps,
`asyncio.timeout` and task groups are all virtual. Timers that fall on the same nanosecond run in the order in which
they were set. There are no files, sockets, signals or threads: TCP servers and connections and serial lines live in
memory (`virtual_network`) and take their latency from the run's seed; `run_in_executor` runs the function at
once, in the loop's thread, at no virtual cost.

The loop overrides private parts of `asyncio.BaseEventLoop` (`_run_once`, `_timer_handle_cancelled`, `_write_to_self`);
`tests/test_virtual_loop.py` pins them.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from typing import Any, Protocol, TypeVar

from drivers.wires.latency import SERIAL_DEFAULT, TCP_DEFAULT, Latency, WireLatency, seeded_latency
from drivers.wires.virtual_network import ProtocolT, VirtualNetwork, VirtualServer
from drivers.wires.virtual_pipe import VirtualTransport

T = TypeVar("T")

HORIZON_NS = 1_000_000_000
"""How far a world that is still alive is run at a time when no timer is set."""

LIVELOCK_TURNS = 1_000_000
"""Turns of the loop without progress of its clock that count as a livelock."""


class World(Protocol):
    """What happens outside the coroutines while they wait."""

    def run_to(self, t_ns: int) -> int:
        """Run until `t_ns` at the latest; return the time reached, earlier if a coroutine must see something.

        Callbacks are handed over by `loop.call_soon` (or `call_at_ns`) meanwhile; they run at the time returned.
        """
        ...

    def alive(self) -> bool:
        """Whether anything can still happen without the coroutines: asked only when no timer is set."""
        ...


class EmptyWorld:
    """Nothing happens: time jumps."""

    def run_to(self, t_ns: int) -> int:
        return t_ns

    def alive(self) -> bool:
        return False


class VirtualDeadlockError(RuntimeError):
    """Every task waits for something that cannot happen any more, or spins without time passing."""


class _NumberedTask(asyncio.Task[Any]):
    """A task whose hash is its number.

    asyncio keeps tasks in sets (task groups cancel their members in set order); hashes made of memory addresses would
    make that order differ from run to run.
    """

    def __init__(self, number: int, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class _Arrival:
    """What the loop needs of a message on its way: a handle that nobody cancels, without a context of its own."""

    __slots__ = ("_args", "_callback", "_scheduled")
    _cancelled = False

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback = callback
        self._args = args
        self._scheduled = True

    def _run(self) -> None:
        self._callback(*self._args)


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module's text. `latency`: travel time in ns of a message on the wire with this address."""

    _ready: deque[asyncio.Handle]
    _stopping: bool

    virtual = True
    """Tells code that must know (the journal's disk thread) that no time passes while it waits."""

    def __init__(self, *, world: World | None = None, latency: Latency | None = None, start_ns: int = 0) -> None:
        super().__init__()
        self._now_ns = start_ns
        self._world: World = world if world is not None else EmptyWorld()
        self._latency = latency if latency is not None else seeded_latency(0)
        self._network = VirtualNetwork(self)
        self._timers: list[tuple[int, int, Any]] = []  # time, number, handle or arrival
        self._timer_number = 0
        self._cancelled_timers = 0
        self._turns = 0
        self._task_number = 0
        self.set_task_factory(self._numbered_task)

    def _numbered_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        self._task_number += 1
        return _NumberedTask(self._task_number, coro, loop=loop, **options)

    # ---- clock

    def time_ns(self) -> int:
        """Virtual time in ns: the truth; `time()` is derived from it."""
        return self._now_ns

    def time(self) -> float:
        return self._now_ns / 1e9

    def latency_ns(self, address: str) -> int:
        """Travel time of the next message on a wire."""
        return self._latency(address)

    def set_world(self, world: World) -> None:
        """Replace the world, e.g. by one that was built inside the main coroutine."""
        self._world = world

    # ---- timers

    def call_at_ns(
        self, when_ns: int, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Like `call_at`, in ns; a time in the past runs at the next turn."""
        self._check_closed()  # type: ignore[attr-defined]
        handle = asyncio.TimerHandle(when_ns / 1e9, callback, args, self, context)
        handle._scheduled = True  # type: ignore[attr-defined]
        self._timer_number += 1
        heapq.heappush(self._timers, (when_ns, self._timer_number, handle))
        return handle

    def arrive_at_ns(self, when_ns: int, callback: Callable[..., object], *args: Any) -> None:
        """Like `call_at_ns` for a wire's messages, of which there are thousands: nothing to cancel, and quicker."""
        self._timer_number += 1
        heapq.heappush(self._timers, (when_ns, self._timer_number, _Arrival(callback, args)))

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        when_ns = round(when * 1e9)
        if when_ns / 1e9 < when:  # so that time() >= when in the callback
            when_ns += 1
        return self.call_at_ns(when_ns, callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        delay_ns = round(delay * 1e9)
        if delay > 0 and delay_ns == 0:  # a wait must make progress, however short
            delay_ns = 1
        return self.call_at_ns(self._now_ns + delay_ns, callback, *args, context=context)

    def block_ns(self, delay_ns: int) -> None:
        """A callback that keeps the loop for so long: the world goes on, timers and callbacks wait."""
        until_ns = self._now_ns + delay_ns
        while self._now_ns < until_ns:
            self._now_ns = max(self._world.run_to(until_ns), self._now_ns + 1)

    def jump_ns(self, delay_ns: int) -> None:
        """The clock is so much later at once; the world has not moved, and must take the difference off."""
        self._now_ns += delay_ns

    async def wait_ns(self, delay_ns: int) -> None:
        """Sleep for a whole number of ns."""
        future = self.create_future()
        timer = self.call_at_ns(self._now_ns + delay_ns, _wake, future)
        try:
            await future
        finally:
            timer.cancel()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if handle._scheduled:  # type: ignore[attr-defined]
            self._cancelled_timers += 1
            if self._cancelled_timers > 100 and 2 * self._cancelled_timers > len(self._timers):
                self._timers = [entry for entry in self._timers if not entry[2]._cancelled]
                heapq.heapify(self._timers)
                self._cancelled_timers = 0

    # ---- the turn of the loop

    def _run_once(self) -> None:
        ready = self._ready
        if ready or self._stopping:
            self._turns += 1
            if self._turns > LIVELOCK_TURNS:
                self._turns = 0
                raise VirtualDeadlockError(
                    self._who_waits(f"{LIVELOCK_TURNS} turns without progress of the virtual clock")
                )
        else:
            self._advance()
        timers = self._timers
        now_ns = self._now_ns
        while timers and timers[0][0] <= now_ns:
            handle = heapq.heappop(timers)[2]
            handle._scheduled = False
            if handle._cancelled:
                self._cancelled_timers -= 1
            else:
                ready.append(handle)
        for _ in range(len(ready)):
            due = ready.popleft()
            if not due._cancelled:
                due._run()

    def _advance(self) -> None:
        """Nothing is ready: let the world run to the next timer."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)[2]._scheduled = False
            self._cancelled_timers -= 1
        now_ns = self._now_ns
        if timers:
            target_ns = timers[0][0]
        elif self._world.alive():
            target_ns = now_ns + HORIZON_NS
        else:
            raise VirtualDeadlockError(self._who_waits("nothing is ready, no timer is set, and the world has ended"))
        if target_ns <= now_ns:
            return
        reached_ns = self._world.run_to(target_ns)
        if not now_ns <= reached_ns <= target_ns:
            raise RuntimeError(f"the world ran from {now_ns} ns to {reached_ns} ns; wanted at most {target_ns} ns")
        if reached_ns == now_ns and not self._ready:
            raise RuntimeError(f"the world stopped at {now_ns} ns without an event; wanted to reach {target_ns} ns")
        if reached_ns > now_ns:
            self._turns = 0
        self._now_ns = reached_ns

    def _who_waits(self, what: str) -> str:
        tasks = sorted((task for task in asyncio.all_tasks(self)), key=hash)
        lines = [f"  {task.get_name()}: {_place(task)}" for task in tasks]
        return f"virtual time {self._now_ns} ns: {what}; waiting tasks:\n" + ("\n".join(lines) or "  none")

    # ---- wires

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        start_serving: bool = True,
        ssl: object = None,
        **_socket_options: object,
    ) -> VirtualServer:
        """In memory; socket options are accepted and mean nothing, TLS is refused."""
        if ssl is not None:
            raise NotImplementedError("the virtual network has no TLS")
        return self._network.listen(self, protocol_factory, host or "", port or 0, start_serving)

    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], ProtocolT],
        host: str,
        port: int,
        *,
        ssl: object = None,
        local_addr: tuple[str, int] | None = None,
        **_socket_options: object,
    ) -> tuple[VirtualTransport, ProtocolT]:
        """In memory; raises ConnectionRefusedError if nothing listens."""
        if ssl is not None:
            raise NotImplementedError("the virtual network has no TLS")
        return await self._network.dial(protocol_factory, host, port, local_addr)

    async def create_serial_server(
        self, protocol_factory: Callable[[], ProtocolT], path: str, *, baudrate: int = 0
    ) -> tuple[VirtualTransport, ProtocolT]:
        """Put a device on a serial path. `baudrate` adds the time of its bytes to the latency; 0: none."""
        return self._network.open_server_line(protocol_factory, path, baudrate)

    async def create_serial_connection(
        self, protocol_factory: Callable[[], ProtocolT], path: str, *, baudrate: int = 0
    ) -> tuple[VirtualTransport, ProtocolT]:
        """Open a serial path, exclusively. Raises FileNotFoundError if no device is on it, OSError if it is open."""
        return self._network.open_line(protocol_factory, path, baudrate)

    async def create_datagram_endpoint(self, *_args: object, **_options: object) -> Any:
        """Refused: frames and permits never pass through asyncio."""
        raise NotImplementedError("the virtual network has no datagrams; the world carries frames and permits")

    async def getaddrinfo(self, *_args: object, **_options: object) -> Any:
        """Refused: a name service would make runs differ."""
        raise NotImplementedError("the virtual network has no name service; use numeric addresses")

    # ---- threads

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run the function now, in this thread, so that the order of events cannot depend on threads."""
        if executor is not None:
            raise NotImplementedError("the virtual loop has no executors; pass None to run the function at once")
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as exc:  # boundary: as an executor does, hand the error to whoever awaits
            future.set_exception(exc)
        return future

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """From this thread only (signal handlers run here too): another thread would make runs differ."""
        if self.is_running() and threading.get_ident() != self._thread_id:  # type: ignore[attr-defined]
            raise RuntimeError("the virtual loop takes no callbacks from other threads")
        return self.call_soon(callback, *args, context=context)

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody has to be woken."""


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _place(task: asyncio.Task[Any]) -> str:
    """Where a task waits: the innermost frame of its coroutine."""
    coro: Any = task.get_coro()
    place = repr(coro)
    while coro is not None:
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None)
        if frame is None:
            break
        place = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None)
    return place


def run_virtual(
    main: Coroutine[Any, Any, T],
    world: World | None = None,
    *,
    seed: int = 0,
    tcp: WireLatency = TCP_DEFAULT,
    serial: WireLatency = SERIAL_DEFAULT,
    wires: Mapping[str, WireLatency] | None = None,
    start_ns: int = 0,
    debug: bool | None = None,
) -> T:
    """`asyncio.run` in virtual time. Same coroutine, world and seed: same order and times of all events.

    Tasks that outlive `main` are cancelled, and named in a ResourceWarning.
    """
    latency = seeded_latency(seed, tcp=tcp, serial=serial, wires=wires)

    def loop_factory() -> VirtualLoop:
        return VirtualLoop(world=world, latency=latency, start_ns=start_ns)

    with asyncio.Runner(debug=debug, loop_factory=loop_factory) as runner:
        result = runner.run(main)
        leaked = sorted(asyncio.all_tasks(runner.get_loop()), key=hash)
        if leaked:
            names = ", ".join(f"{task.get_name()} at {_place(task)}" for task in leaked)
            warnings.warn(f"tasks outlived the main coroutine: {names}", ResourceWarning, stacklevel=2)
    return result
