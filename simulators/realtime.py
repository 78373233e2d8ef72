"""A room in real time: the plant on a thread of its own, its frames and permits on real UDP sockets.

Register handlers run on the asyncio thread beside the plant: commands go through mailbox counters in the plant's
record, readings are of aligned words, and the thread holds no interpreter lock, so neither waits for the other.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from types import TracebackType
from typing import Self

import numpy as np

from drivers.errors import Refused
from drivers.wires.addresses import same_host
from drivers.wires.frames import FRAME_NS
from drivers.wires.realtime import RealtimeWishes, ask_realtime
from simulators.devices.plant_electrometer import Destination
from simulators.plant.state import Plant
from simulators.realtime_loop import (
    FRAMES,
    LATE_FRAMES,
    LATE_MAX_NS,
    SEND_ERRORS,
    SENT,
    STATUS_WORDS,
    STOP,
    run_room,
)
from simulators.room import Room
from sites.schema import UdpEndpoint

log = logging.getLogger("spotwise.simulators.realtime")

STREAMS, SLOTS = (1, 2, 3), (0, 1)


def warm_up() -> None:
    """Compile, or load from the cache, everything that the thread calls: a scratch plant is run for no time."""
    plant = Plant()
    none = np.zeros((4, 2), np.int32)
    status = np.zeros(STATUS_WORDS, np.int64)
    status[STOP] = 1
    run_room(plant.memory[0], plant.frame_1, plant.frame_2, plant.frame_3, plant.permit, -1, none, none, status)


class RoomThread:
    """Runs a room's plant in step with the monotonic clock while the block lasts.

    Takes over `room.streams_changed`: from then on frames go where the devices' registers say. Enter it before the
    room's devices are served, so that device time is right from the first register read on.
    """

    def __init__(self, room: Room, wishes: RealtimeWishes | None = None) -> None:
        """`wishes`: what to ask of Linux for the thread; see `granted`."""
        self.granted: dict[str, object] = {}
        """What Linux granted to the thread."""
        self._room = room
        self._wishes = wishes or RealtimeWishes()
        self._status = np.zeros(STATUS_WORDS, np.int64)
        self._fds = np.full((4, 2), -1, np.int32)
        self._enabled = np.zeros((4, 2), np.int32)
        self._senders: dict[tuple[int, int], socket.socket] = {}
        self._leads_to: dict[tuple[int, int], Destination] = {}
        self._permits: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Bind, compile, start. Raises `Refused` if the permits' address cannot be bound."""
        try:
            self._open_sockets()
            warm_up()
            self._room.streams_changed = self.streams_changed
            self._room.plant.state["t_ns"] = time.monotonic_ns() // FRAME_NS * FRAME_NS
            self._status[:] = 0
            started = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(started,), name="room", daemon=True)
            self._thread.start()
            started.wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the thread (it looks each frame), then close its sockets."""
        self._stop()

    def _open_sockets(self) -> None:
        if self._room.site.devices.safety_chain.kind == "simulated":  # else permits are the real chain's
            self._permits = self._bind(self._room.site.streams.permits)
        # One socket a destination for the thread's whole life: it is pointed elsewhere, never closed under the thread.
        for stream in STREAMS:
            for slot in SLOTS:
                sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._senders[stream, slot] = sender
                self._fds[stream, slot] = sender.fileno()

    @staticmethod
    def _bind(where: UdpEndpoint) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.bind((same_host(where.host), where.port))
        except OSError as error:
            sock.close()
            raise Refused(
                f"udp://{where.host}:{where.port}: the safety chain cannot take permits there: {error.strerror}; "
                "another room runs, or the host is not this PC's (streams.permits of the site)"
            ) from error
        return sock

    def _run(self, started: threading.Event) -> None:
        plant = self._room.plant
        self.granted = ask_realtime(self._wishes)
        started.set()
        run_room(
            plant.memory[0],
            plant.frame_1,
            plant.frame_2,
            plant.frame_3,
            plant.permit,
            -1 if self._permits is None else self._permits.fileno(),
            self._fds,
            self._enabled,
            self._status,
        )

    def _stop(self) -> None:
        self._status[STOP] = 1
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for sock in (*self._senders.values(), self._permits):
            if sock is not None:
                sock.close()
        self._senders.clear()
        self._permits = None

    def streams_changed(self, number: int, slot: int, destination: Destination) -> None:
        """A device's registers say where the frames of stream `number` go: (IPv4 as integer, port, enabled)."""
        address, port, enabled = destination
        sender = self._senders.get((number, slot))
        if sender is None:
            return
        if self._leads_to.get((number, slot)) == destination:
            return  # written once more by a controller that came after a killed one: no frame may be missing
        self._enabled[number, slot] = 0
        self._leads_to[number, slot] = (0, 0, False)
        if not enabled:
            return
        where = (str(ipaddress.IPv4Address(address)), port)
        try:
            sender.connect(where)
        except OSError as error:
            log.warning("stream %d slot %d: no frames to udp://%s:%d: %s", number, slot, *where, error.strerror)
            return
        self._enabled[number, slot] = 1
        self._leads_to[number, slot] = destination

    def figures(self) -> dict[str, int]:
        """What the thread has done: frames, datagrams sent and refused, frames over a period late, longest delay."""
        status = self._status
        return {
            "frames": int(status[FRAMES]),
            "sent": int(status[SENT]),
            "send_errors": int(status[SEND_ERRORS]),
            "late_frames": int(status[LATE_FRAMES]),
            "late_max_ns": int(status[LATE_MAX_NS]),
        }
