"""The real-time path on real sockets: one thread that receives frames, judges them, and sends permits and drops.

The thread runs `controller.dose.reactor` and nothing else. Asyncio shares the path's memory with it (see
`controller.dose.memory` for who writes what) and is told of news through an eventfd.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from controller.dose.memory import Monitor
from controller.dose.reactor import reactor
from controller.dose.tape import Tape
from drivers.errors import Refused
from drivers.wires.addresses import same_host
from drivers.wires.realtime import RealtimeWishes, ask_realtime, ask_receive_buffer, kernel_drops
from sites.schema import Site

PAGE_BYTES = 4096
RECEIVE_TIMEOUT_US = 1000
"""Without frames the loop turns this often: it bounds how late a silence, a lost lease or a stop is seen."""


def warm_up() -> None:
    """Compile the loop, or load it from the cache, before there is anything to supervise."""
    scratch = Monitor()
    scratch.control["stop"] = 1
    _run_reactor(scratch, Tape(), -1, -1, -1)


def _run_reactor(monitor: Monitor, tape: Tape, frames: int, permits: int, event: int) -> None:
    reactor(
        monitor.memory[0],
        monitor.buffer,
        monitor.permit,
        frames,
        permits,
        event,
        monitor.acted_words,
        monitor.wished_words,
        tape.memory[0],
        tape.ring,
    )


def touch(memory: NDArray[Any]) -> None:
    """Have every page of a memory there before it is needed.

    Zeroed memory is only promised. The first write to a page of the rings took up to 5 ms on a virtual machine, with
    the beam on, in the thread that may not wait.
    """
    memory.view(np.uint8).reshape(-1)[::PAGE_BYTES] |= 0


class RealtimeThread:
    """Runs the real-time path while the block lasts; never leaves its thread running.

    Enter it on the running loop. Leaving sends nothing: permits just stop, and the chain opens by itself; whoever ends
    a treatment on purpose disarms first.
    """

    def __init__(
        self,
        site: Site,
        monitor: Monitor,
        notify: Callable[[], None],
        wishes: RealtimeWishes | None = None,
        tape: Tape | None = None,
    ) -> None:
        """`notify` is called on the loop when there is news, as `MonitorPath.notify`; `tape` takes every frame."""
        self.granted: dict[str, object] = {}
        """What Linux granted: to the thread (see `RealtimeWishes`), and `receive_buffer_bytes` to the socket."""
        self._site = site
        self._monitor = monitor
        self._notify = notify
        self._wishes = wishes or RealtimeWishes()
        self._tape = tape or Tape()
        self._frames: socket.socket | None = None
        self._permits: socket.socket | None = None
        self._event_fd = -1
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        """Compile, bind, start. Raises `Refused` if the frames' address cannot be bound."""
        loop = asyncio.get_running_loop()
        try:
            warm_up()
            touch(self._monitor.memory)
            self._open()
            loop.add_reader(self._event_fd, self._news)
            self._loop = loop
            self._monitor.control["stop"] = 0
            self._monitor.separate_commands()
            started = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(started,), name="real-time path", daemon=True)
            self._thread.start()
            started.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _open(self) -> None:
        where = self._site.streams.frames
        self._frames = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._frames.bind((same_host(where.host), where.port))
        except OSError as error:
            raise Refused(
                f"udp://{where.host}:{where.port}: cannot take frames there: {error.strerror}; another controller "
                "runs, or the host is not this PC's (streams.frames of the site)"
            ) from error
        self.granted["receive_buffer_bytes"] = ask_receive_buffer(self._frames)
        self._frames.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, RECEIVE_TIMEOUT_US))
        chain = self._site.streams.permits
        self._permits = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._permits.connect((same_host(chain.host), chain.port))
        except OSError as error:
            raise Refused(
                f"udp://{chain.host}:{chain.port}: no way to the safety chain: {error.strerror} "
                "(streams.permits of the site)"
            ) from error
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def _run(self, started: threading.Event) -> None:
        monitor = self._monitor
        assert self._frames is not None
        assert self._permits is not None
        self.granted |= ask_realtime(self._wishes)
        started.set()
        _run_reactor(monitor, self._tape, self._frames.fileno(), self._permits.fileno(), self._event_fd)

    def _news(self) -> None:
        os.eventfd_read(self._event_fd)
        self._notify()

    def drops(self) -> int:
        """Datagrams that the kernel threw away since the start because the receive buffer was full."""
        return 0 if self._frames is None else kernel_drops(self._frames)

    def stop(self) -> None:
        """End the thread (it looks at least each millisecond) and close what it used. Harmless when repeated."""
        if self._thread is not None:
            self._monitor.control["stop"] = 1
            self._thread.join()
            self._thread = None
        if self._loop is not None:
            self._loop.remove_reader(self._event_fd)
            self._loop = None
        if self._event_fd >= 0:
            os.close(self._event_fd)
            self._event_fd = -1
        for sock in (self._frames, self._permits):
            if sock is not None:
                sock.close()
        self._frames = self._permits = None
