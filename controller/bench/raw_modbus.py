"""The yardstick of `bench download`: the same requests on a plain socket, and nothing else.

It does what the wire asks for and no more: sends the requests' bytes, reads each answer's length and body. No asyncio,
no library, no deadline, no checks of what came back, no CRC.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

HEADER_BYTES = 6
"""Modbus TCP: transaction, protocol, length of what follows (each 16 bits, big endian)."""


class RawModbus:
    """One connection."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def ask_all(self, requests: Sequence[bytes], at_once: int = 1) -> list[bytes]:
        """Each `at_once` requests in one piece, after the answers to those before."""
        answers = []
        for at in range(0, len(requests), at_once):
            several = requests[at : at + at_once]
            self._socket.sendall(b"".join(several))
            for _ in several:
                answer = self._receive(HEADER_BYTES)
                answers.append(answer + self._receive(int.from_bytes(answer[4:6], "big")))
        return answers

    def _receive(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise ConnectionError("the Modbus server closed the connection")
            parts += part
        return parts
