"""Ports for rooms of tests: outside what the system itself gives to sockets that ask for any."""

from __future__ import annotations

import random
import socket

FIRST, LAST = 16_000, 32_000
"""Linux gives ports from 32,768 on (net.ipv4.ip_local_port_range)."""
_numbers = random.SystemRandom()


def free_port() -> int:
    """A port on loopback that no TCP and no UDP socket had a moment ago."""
    while True:
        port = _numbers.randrange(FIRST, LAST)
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
