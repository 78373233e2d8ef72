"""Parts for tests on the real clock: a site on addresses of the test's own, and sockets that play a part."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drivers.open import open_device
from sites.loader import load_site
from sites.schema import Site

CARBON = load_site("carbon-fixed")
WAIT_S = 60.0
PATIENT_MS = 20_000.0
"""Limits for tests that are not about limits: a loaded PC may stall a thread for a while."""


def own_site(free_port: Callable[[], int], folder: Path) -> Site:
    """carbon-fixed, all simulated, on free ports and on lines below `folder`; patient about stale frames."""
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
            "permits": CARBON.permits.model_copy(update={"stale_ms": PATIENT_MS, "frame_age_max_ms": PATIENT_MS}),
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
