"""The device's end of a serial line made of a pty: whoever opens the linked path talks to the simulated device.

The slave side is linked under the path that the site names. A lock file beside the link belongs to whoever serves it,
so that a link left by a killed process is replaced, but neither a served line nor a real port ever is.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import tty
from collections.abc import Callable
from pathlib import Path

from drivers.errors import Refused

READ_BYTES = 4096
MAX_UNSENT_BYTES = 4096
"""What is kept for a reader that does not read; the rest is lost, as on a wire."""


class PtyTransport(asyncio.Transport):
    """Bytes in and out of the master side of a pty."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, path: Path) -> None:
        """Create, link and start. Raises `Refused` if the path is taken or is no link."""
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._path = path
        self._unsent = b""
        self._closing = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock_fd = _lock(self._lock_path, path)
        free = False
        try:
            _remove_stale_link(path)
            free = True
        finally:
            if not free:
                self._unlock()
        # The slave stays open here, so that the line does not hang up whenever a client closes it.
        self._master_fd, self._slave_fd = os.openpty()
        tty.setraw(self._slave_fd)
        os.set_blocking(self._master_fd, False)
        self._slave_name = os.ttyname(self._slave_fd)
        path.symlink_to(self._slave_name)
        loop.add_reader(self._master_fd, self._readable)
        protocol.connection_made(self)

    def _readable(self) -> None:
        try:
            data = os.read(self._master_fd, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._protocol.data_received(data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or len(self._unsent) > MAX_UNSENT_BYTES:
            return
        had_unsent = bool(self._unsent)
        self._unsent += bytes(data)
        if not had_unsent:
            self._writable()
            if self._unsent:
                self._loop.add_writer(self._master_fd, self._writable)

    def _writable(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._master_fd, self._unsent) :]
        except BlockingIOError:
            return
        if not self._unsent:
            self._loop.remove_writer(self._master_fd)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Hang up the line and remove the link, if it is still ours."""
        if self._closing:
            return
        self._closing = True
        self._loop.remove_reader(self._master_fd)
        self._loop.remove_writer(self._master_fd)
        if self._path.is_symlink() and os.readlink(self._path) == self._slave_name:
            self._path.unlink()
        os.close(self._master_fd)
        os.close(self._slave_fd)
        self._unlock()
        self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def _unlock(self) -> None:
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock_fd)


def _lock(lock_path: Path, path: Path) -> int:
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise Refused(
            f"serial://{path}: another simulator serves this line; stop it or change the site's path"
        ) from exc
    return fd


def _remove_stale_link(path: Path) -> None:
    if path.is_symlink() and os.readlink(path).startswith("/dev/pts/"):
        path.unlink()
    elif path.is_symlink() or path.exists():
        raise Refused(f"serial://{path}: exists and is no link to a pty; a simulator never takes a real port's place")


def open_pty_line(
    loop: asyncio.AbstractEventLoop, protocol_factory: Callable[[], asyncio.BaseProtocol], path: str
) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
    """Put a device on a pty linked at `path`; its directory is created. Raises `Refused`."""
    protocol = protocol_factory()
    # The library's protocols are stream protocols in all but their base class.
    transport = PtyTransport(loop, protocol, Path(path))  # type: ignore[arg-type]
    return transport, protocol
