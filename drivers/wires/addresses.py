"""How a wire is named wherever it is looked up by name: latencies, faults, log lines.

One string a wire: `tcp://127.0.0.1:15020` or `serial:///run/spotwise/gantry`.
"""

from __future__ import annotations

_ANY_LOCAL = {"": "0.0.0.0", "localhost": "127.0.0.1"}


def same_host(host: str) -> str:
    """Give the one spelling of a host that wires are keyed by (`localhost` is 127.0.0.1, empty is any)."""
    return _ANY_LOCAL.get(host, host)


def tcp_address(host: str, port: int) -> str:
    """Name of a TCP wire, by the address that the server listens on."""
    return f"tcp://{same_host(host)}:{port}"


def serial_address(path: str) -> str:
    """Name of a serial wire, by the path of its port."""
    return f"serial://{path}"
