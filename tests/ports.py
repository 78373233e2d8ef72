"""Ports for rooms of tests: each is given once, to one process at a time.

Outside what the system itself gives to sockets that ask for any (Linux: from 32,768 on; gVisor: from 16,000 on) and
outside what the sites in this repository use (15,020 to 15,331). A port that only was free a moment ago may be given
again before its first taker has bound it: twice to one room, or to two test processes.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import socket
import tempfile
from pathlib import Path

PORTS = range(9_000, 15_000)
_order = itertools.cycle(random.SystemRandom().sample(PORTS, len(PORTS)))
_claims = os.open(
    Path(tempfile.gettempdir()) / f"spotwise-test-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
)
"""A byte a port, locked while the process lives that was given it."""


def free_port() -> int:
    """A port on loopback that no TCP and no UDP socket has, and that nobody else was given."""
    for _ in PORTS:
        port = next(_order)
        if _claimed(port) and _unbound(port):
            return port
    raise OSError(f"no free port on loopback in {PORTS.start} to {PORTS.stop - 1}")


def _claimed(port: int) -> bool:
    try:
        fcntl.lockf(_claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def _unbound(port: int) -> bool:
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as probe:
                probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
