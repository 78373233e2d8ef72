"""Where a streaming device sends its frames: the same registers in every device that streams."""

from __future__ import annotations

import ipaddress

from drivers.deadline import Deadline
from drivers.errors import DeviceError
from drivers.register_client import RegisterDriver
from drivers.verify import Wanted, until
from drivers.wires.addresses import same_host


async def stream_to(driver: RegisterDriver, host: str, port: int, slot: int, deadline: Deadline) -> None:
    """Send frames to host:port; returns when the destination reads back and frames leave. Slot 1 is the guard's."""
    if slot not in (0, 1):
        raise DeviceError(driver.name, f"there are stream slots 0 and 1, not {slot}")
    try:
        address = ipaddress.IPv4Address(same_host(host))
    except ValueError as error:
        raise DeviceError(driver.name, f"stream_{slot}: {host!r} is no IPv4 address") from error
    prefix = f"stream_{slot}_"
    await driver.link.write({f"{prefix}ipv4": int(address), f"{prefix}port": port, f"{prefix}enable": True}, deadline)
    await until(
        driver.name,
        Wanted("streaming", "True"),
        lambda: driver.link.read(("streaming",), deadline),
        lambda got: bool(got["streaming"]),
        lambda got: str(got["streaming"]),
        poll_s=driver.poll_s,
        deadline=deadline,
    )
