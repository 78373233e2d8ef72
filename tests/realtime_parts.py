"""Parts for tests on the real clock: a site on addresses of the test's own, and sockets that play a part."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from controller.dose.acquisition import RealtimeThread
from controller.dose.memory import Monitor
from controller.dose.path import LEASE_DELIVERY, LEASE_INTERLOCKS, MonitorPath
from drivers.open import open_device
from drivers.wires.frames import new_buffer
from drivers.wires.permits import Permit, key_words, permit_is_authentic
from drivers.wires.permits import decode as decode_permit
from simulators.plant.build import permit_key
from simulators.realtime import RoomThread
from simulators.room import Room
from sites.loader import load_site
from sites.schema import Site

CARBON = load_site("carbon-fixed")
WAIT_S = 60.0
SESSION, TOKEN = 0x5E55, 0x70CE
LOOPBACK = int(ipaddress.IPv4Address("127.0.0.1"))
DAY_NS = 86_400_000_000_000
PATIENT_MS = 20_000.0
"""Limits for tests that are not about limits: a loaded PC may stall a thread for a while."""


def own_site(free_port: Callable[[], int], folder: Path) -> Site:
    """carbon-fixed without its guard, all simulated, on free ports and lines below `folder`; patient with frames."""
    devices = {}
    for name, device in CARBON.devices.items():
        if device.address.wire == "modbus_tcp":
            address = device.address.model_copy(update={"port": free_port()})
        else:
            address = device.address.model_copy(update={"path": str(folder / name)})
        devices[name] = device.model_copy(update={"address": address, "request_timeout_ms": 5000.0})
    return CARBON.model_copy(
        update={
            "devices": CARBON.devices.model_copy(update=devices),
            "streams": CARBON.streams.model_copy(
                update={
                    "frames": CARBON.streams.frames.model_copy(update={"port": free_port()}),
                    "permits": CARBON.streams.permits.model_copy(update={"port": free_port()}),
                }
            ),
            "permits": CARBON.permits.model_copy(
                update={"required": ("controller",), "stale_ms": PATIENT_MS, "frame_age_max_ms": PATIENT_MS}
            ),
        }
    )


def with_permits_to(site: Site, port: int) -> Site:
    """The same site with another port for permits."""
    endpoint = site.streams.permits.model_copy(update={"port": port})
    return site.model_copy(update={"streams": site.streams.model_copy(update={"permits": endpoint})})


def driver(site: Site, name: str) -> Any:
    """The driver of a device, not connected."""
    device = getattr(site.devices, name)
    a = device.address
    if a.wire == "modbus_tcp":
        return open_device(name, wire=a.wire, map=device.map, host=a.host, port=a.port)
    return open_device(name, wire=a.wire, map=device.map, path=a.path, baud=a.baud, unit=getattr(a, "unit", 1))


@contextmanager
def udp_listener() -> Iterator[socket.socket]:
    """A UDP socket on a free port with room for seconds of datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        yield listener


def waiting(listener: socket.socket) -> list[bytes]:
    """All datagrams that wait."""
    datagrams = []
    while True:
        try:
            datagrams.append(listener.recv(2048))
        except BlockingIOError:
            return datagrams


@contextmanager
def streaming_room(site: Site) -> Iterator[Room]:
    """A room whose three streams go to the site's address for frames."""
    room = Room(site, 1, boot="test")
    with RoomThread(room) as thread:
        for stream in (1, 2, 3):
            thread.streams_changed(stream, 0, (LOOPBACK, site.streams.frames.port, True))
        yield room


@contextmanager
def path_on_sockets(site: Site) -> Iterator[MonitorPath]:
    """The real-time path on its thread, with the site's key; leases hold for a day."""
    monitor = Monitor()
    path = MonitorPath(site, monitor)
    path.load_key(permit_key(site), SESSION)
    # no field is loaded, and the monitors' pedestals count all the time
    monitor.limits["field_counts_1"] = monitor.limits["field_counts_2"] = 1e12
    monitor.limits["idle_counts_1"] = monitor.limits["idle_counts_2"] = 1e12
    for lease in (LEASE_INTERLOCKS, LEASE_DELIVERY):
        path.renew(lease, time.monotonic_ns() + DAY_NS)
    with RealtimeThread(site, monitor, path.notify):
        yield path


def permits_in(datagrams: list[bytes], site: Site) -> list[Permit]:
    """Decoded permits; every datagram must be one, with the right MAC."""
    key = key_words(permit_key(site))
    buffer = new_buffer()
    decoded = []
    for data in datagrams:
        buffer.u8[: len(data)] = np.frombuffer(data, np.uint8)
        assert permit_is_authentic(buffer, len(data), key)
        permit = decode_permit(data)
        assert permit is not None
        decoded.append(permit)
    return decoded


async def until(what: str, condition: Callable[[], Any]) -> None:
    """Wait for a condition; fail, naming it, when it never comes."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited {WAIT_S} s in vain: {what}") from None


def names_in(folder: Path) -> set[str]:
    """Names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


def left_by_a_killed_simulator(path: Path) -> None:
    """A link to a pty that is gone, and a lock file that nobody holds."""
    path.symlink_to("/dev/pts/9999")
    path.with_name(path.name + ".lock").touch()


def some_real_port(path: Path) -> None:
    """Something at a serial line's path that is no link of ours."""
    path.write_text("no simulator takes a real port's place", encoding="utf-8")
