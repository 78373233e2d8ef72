"""The tables that say how each device is reached, and whether it is the real one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sites.table import Positive, Table


class TcpAddress(Table):
    """A Modbus TCP device."""

    wire: Literal["modbus_tcp"]
    host: str
    port: int = Field(ge=1024, le=65535)
    in_flight: int = Field(default=1, ge=1, le=16)
    """Requests that may be under way at once; more than 1 only where the device's manual allows it."""

    @property
    def place(self) -> str:
        """Where it is, for messages and comparison."""
        return f"{self.host}:{self.port}"


class RtuAddress(Table):
    """A Modbus RTU device on a serial line."""

    wire: Literal["modbus_rtu"]
    path: str
    baud: int = Field(ge=1200)
    unit: int = Field(default=1, ge=1, le=247)

    @property
    def place(self) -> str:
        """Where it is; several units may share a line."""
        return f"{self.path} unit {self.unit}"


class AsciiAddress(Table):
    """A device that speaks checksummed ASCII lines on a serial line."""

    wire: Literal["ascii"]
    path: str
    baud: int = Field(ge=1200)

    @property
    def place(self) -> str:
        """Where it is; such a line has one device."""
        return self.path


Address = Annotated[TcpAddress | RtuAddress | AsciiAddress, Field(discriminator="wire")]


class UdpEndpoint(Table):
    """Where datagrams go."""

    host: str
    port: int = Field(ge=1024, le=65535)


class Device(Table):
    """One device: how to reach it, which map it has, and whether it is the real one."""

    kind: Literal["real", "simulated"]
    address: Address
    map: str
    """Name of a register map in drivers/maps, or the path of one."""
    device_id: str
    """Identity that the device must report."""
    poll_hz: Positive
    max_age_ms: Positive
    """A status older than this is no status: trip."""
    request_timeout_ms: Positive = 500.0


DEVICE_NAMES = (
    "accelerator",
    "scan_controller",
    "electrometer_1",
    "electrometer_2",
    "gantry",
    "couch",
    "nozzle",
    "gating",
    "safety_chain",
)


class Devices(Table):
    """All devices of the room; each is real or simulated for itself."""

    accelerator: Device
    scan_controller: Device
    electrometer_1: Device
    electrometer_2: Device
    gantry: Device
    couch: Device
    nozzle: Device
    gating: Device
    safety_chain: Device

    def items(self) -> tuple[tuple[str, Device], ...]:
        """Pairs of name and device, in the order of `DEVICE_NAMES`."""
        return tuple((name, getattr(self, name)) for name in DEVICE_NAMES)


class Streams(Table):
    """UDP endpoints: frames to the controller, permits to the chain."""

    frames: UdpEndpoint
    permits: UdpEndpoint
