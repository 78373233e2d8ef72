"""What every device promises, whoever makes it: one Protocol a device, frozen values in and out.

The real device, the simulated one and any later replacement fulfil the same contract over the same wire.
Rules for all: a method returns only when the read-back agrees (or raises a `DeviceError` that names device,
quantity, wanted, got); every method takes a `Deadline` and never waits longer; cancelling a method leaves the
link usable or marks it suspect; a status carries the time at which it was read, and the device's heartbeat, a
count that goes on by itself every 10 ms: a device that answers while it stands still answers with what is old.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drivers.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers at an address."""

    device_id: str
    simulated: bool
    map_sha256: str
    """Hash of the register map that the device was built with (first 16 hex digits)."""
    boot_nonce: int
    """Changes with every power-up."""


class Connected(Protocol):
    """What all devices share."""

    name: str

    @property
    def stale_answers(self) -> int:
        """Answers thrown away so far because nobody waited for them: late ones, and ones that came twice."""
        ...

    async def connect(self, deadline: Deadline) -> None: ...
    async def close(self) -> None: ...
    async def identify(self, deadline: Deadline) -> Identity: ...


@dataclass(frozen=True, slots=True)
class AcceleratorStatus:
    """Read-back of the accelerator."""

    t_ns: int
    state: int
    """0 idle, 1 changing energy or filling, 2 ready (flat-top or continuous beam available), 3 fault."""
    request_id: int
    """Request that the state refers to."""
    energy_mev_u: float
    ion: str
    port_deg: float
    intensity_level: int
    spill: int
    """Number of the current or last spill."""
    beam_enabled: bool
    stopper_open: bool
    heartbeat: int


class Accelerator(Connected, Protocol):
    """Energy, ion, port, intensity, spill."""

    async def request(
        self, *, ion: str, energy_mev_u: float, intensity_level: int, port_deg: float, optics: int, deadline: Deadline
    ) -> int:
        """Ask for beam like this; returns the request id once the set-points read back. Does not wait for READY.

        `optics` is the beam line's optics set: the index of the treatment machine in the site.
        """
        ...

    async def release(self, deadline: Deadline) -> None:
        """No more spills."""
        ...

    async def stop(self, deadline: Deadline) -> None:
        """Close the stopper and release."""
        ...

    async def open_stopper(self, deadline: Deadline) -> None: ...
    async def status(self, deadline: Deadline) -> AcceleratorStatus: ...


@dataclass(frozen=True, slots=True)
class LayerTable:
    """A layer as the engine takes it; arrays have one entry a visit."""

    first_visit: int
    x_current_a: NDArray[np.float64] = field(repr=False)
    y_current_a: NDArray[np.float64] = field(repr=False)
    preset_counts: NDArray[np.uint32] = field(repr=False)
    time_limit_ms: NDArray[np.uint16] = field(repr=False)
    flags: NDArray[np.uint16] = field(repr=False)
    early_on_counts: int
    early_off_counts: int
    gated: bool
    """Obey the gating device's hold line."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Read-back of the scan controller."""

    t_ns: int
    state: int
    """0 idle, 1 armed, 2 running, 3 held, 4 layer done, 5 aborted, 6 tripped."""
    trip: int
    """Engine's own trip: 0 none, 1 spot time, 2 magnet window, 3 table CRC, 4 no chain."""
    bank: int
    """Bank that runs or ran last."""
    visit: int
    results: int
    """Rows ever written to the result ring."""
    acknowledged: int
    x_current_a: float
    y_current_a: float
    x_offset_a: float
    """Latched at the last arm; every set-point since has it in it."""
    y_offset_a: float
    heartbeat: int


SELF_TEST_VISIT = (1 << 17) - 1
"""Visit id of the engine's self-test, which has no beam: no plan's visit has it, no dose is ever booked to it."""

ENGINE_RESULT_DTYPE = np.dtype(
    [
        ("visit", "<u4"),
        ("counts", "<u4"),  # electrometer 1's counts that the engine saw in the visit
        ("t_start_ns", "<i8"),
        ("t_end_ns", "<i8"),
        ("beam_on_ns", "<i8"),
        ("x_current_a", "<f8"),  # measured at the visit's end
        ("y_current_a", "<f8"),
        ("flags", "<u2"),  # 1: stopped before the preset, 2: more than one stretch of beam
    ]
)


class ScanController(Connected, Protocol):
    """Magnet supplies and spot engine."""

    async def stream_to(self, host: str, port: int, slot: int, deadline: Deadline) -> None:
        """Send frames to host:port; slot 0 is the controller's, 1 the guard's."""
        ...

    async def download(self, bank: int, table: LayerTable, deadline: Deadline) -> None:
        """Write a layer into bank 0 or 1, read every register back, compare, and compare the engine's CRC."""
        ...

    async def arm(
        self, bank: int, arm_token: int, deadline: Deadline, *, x_offset_a: float = 0.0, y_offset_a: float = 0.0
    ) -> None:
        """Arm a bank; the engine adds the offsets (A) to every set-point of it, latched now and read back."""
        ...

    async def start(self, deadline: Deadline) -> None: ...
    async def attend(self) -> None:
        """What the PC itself has to do while a started layer runs: nothing for a spot engine, the steps in step mode.

        To be awaited beside the layer; raises what its devices raise.
        """
        ...

    async def hold(self, on: bool, deadline: Deadline) -> None: ...
    async def abort(self, deadline: Deadline) -> None: ...
    async def status(self, deadline: Deadline) -> EngineStatus: ...
    async def results(self, first: int, count: int, deadline: Deadline) -> NDArray[np.void]:
        """Rows [first, first + count) of the ring as `ENGINE_RESULT_DTYPE`."""
        ...

    async def acknowledge(self, results: int, deadline: Deadline) -> None: ...


@dataclass(frozen=True, slots=True)
class MagnetReadback:
    """What plain magnet supplies say (step mode)."""

    x_set_a: float
    y_set_a: float
    x_current_a: float
    """Measured."""
    y_current_a: float
    inside_us: float
    """Both currents within the supply's window of their set-points for so long, us."""
    heartbeat: int


class MagnetSupply(Connected, Protocol):
    """Supplies of the scan magnets without a spot engine."""

    async def set(self, x_a: float, y_a: float, deadline: Deadline) -> None: ...
    async def readback(self, deadline: Deadline) -> MagnetReadback: ...
    async def stream_to(self, host: str, port: int, slot: int, deadline: Deadline) -> None: ...


@dataclass(frozen=True, slots=True)
class SpotStatus:
    """Read-back of an electrometer's spot preset (step mode)."""

    state: int
    """Of the layer, as in `EngineStatus`."""
    trip: int
    visit: int
    """On the visit line."""
    waiting: bool
    """That visit has its preset and waits for its go."""
    last_beam_us: int
    """Beam-on time of the visit that ended last, us."""
    spots: int
    """Rows ever written to the ring of spots."""
    acknowledged: int
    armed_token: int


TRIP_BACKUP = 1
TRIP_RATE = 2


@dataclass(frozen=True, slots=True)
class ElectrometerStatus:
    """Read-back of an electrometer."""

    t_ns: int
    counts: int
    """Retained cumulative counter."""
    high_voltage_v: float
    temperature_c: float
    pressure_hpa: float
    self_test: int
    """0 not since power-up, 1 running, 2 passed, 3 failed."""
    streaming: bool
    tripped: bool
    """Backup counter or rate limit reached (electrometer 2)."""
    trip: int
    """Which of them: 0 none, `TRIP_BACKUP`, `TRIP_RATE`."""
    trip_visit: int
    results: int
    acknowledged: int
    heartbeat: int


LATCH_DTYPE = np.dtype([("visit", "<u4"), ("counts", "<u8")])
"""Cumulative counts latched at the end of a visit."""


class Electrometer(Connected, Protocol):
    """One integral chamber (electrometer 1: with strips); its frames travel by UDP, not here."""

    async def status(self, deadline: Deadline) -> ElectrometerStatus: ...
    async def self_test(self, deadline: Deadline) -> None:
        """Charge injection; returns when passed."""
        ...

    async def stream_to(self, host: str, port: int, slot: int, deadline: Deadline) -> None:
        """Send frames to host:port; slot 0 is the controller's, 1 the guard's."""
        ...

    async def load_backup(
        self,
        bank: int,
        first_visit: int,
        limits: NDArray[np.uint32],
        rate_limit_per_s: float,
        deadline: Deadline,
        *,
        pedestal_per_s: float = 0.0,
    ) -> None:
        """Electrometer 2: own limits per visit (counts since the visit's start), read back and compared."""
        ...

    async def latches(self, first: int, count: int, deadline: Deadline) -> NDArray[np.void]:
        """Rows of the latch ring as `LATCH_DTYPE`."""
        ...

    async def acknowledge(self, results: int, deadline: Deadline) -> None: ...
    async def reset_trip(self, deadline: Deadline) -> None: ...


@dataclass(frozen=True, slots=True)
class GantryStatus:
    """Read-back of gantry or port."""

    t_ns: int
    angle_deg: float
    moving: bool
    fault: bool
    heartbeat: int


class Gantry(Connected, Protocol):
    """Gantry angle, or the port of a fixed beam line."""

    async def move(self, angle_deg: float, tolerance_deg: float, deadline: Deadline) -> GantryStatus: ...
    async def stop(self, deadline: Deadline) -> None: ...
    async def status(self, deadline: Deadline) -> GantryStatus: ...


@dataclass(frozen=True, slots=True)
class CouchStatus:
    """Read-back of the patient positioner."""

    t_ns: int
    vertical_mm: float
    longitudinal_mm: float
    lateral_mm: float
    rotation_deg: float
    pitch_deg: float
    roll_deg: float
    moving: bool
    fault: bool
    heartbeat: int


class Couch(Connected, Protocol):
    """Patient positioner."""

    async def move(
        self,
        *,
        vertical_mm: float | None,
        longitudinal_mm: float | None,
        lateral_mm: float | None,
        rotation_deg: float,
        pitch_deg: float,
        roll_deg: float,
        tolerance_mm: float,
        tolerance_deg: float,
        deadline: Deadline,
    ) -> CouchStatus:
        """None: that axis stays where it is."""
        ...

    async def stop(self, deadline: Deadline) -> None: ...
    async def status(self, deadline: Deadline) -> CouchStatus: ...


@dataclass(frozen=True, slots=True)
class NozzleStatus:
    """Read-back of the nozzle."""

    t_ns: int
    snout_code: int
    """Coded identity of the mounted snout; 0: none."""
    snout_mm: float
    range_shifter_code: int
    """Coded identity of the range shifter in the beam; 0: none."""
    ripple_filter_code: int
    moving: bool
    fault: bool
    heartbeat: int


class Nozzle(Connected, Protocol):
    """Snout, range shifter, ripple filter; each reads back its coded identity."""

    async def set(
        self,
        *,
        snout_mm: float | None,
        range_shifter_code: int,
        ripple_filter_code: int,
        snout_tolerance_mm: float,
        deadline: Deadline,
    ) -> NozzleStatus: ...
    async def status(self, deadline: Deadline) -> NozzleStatus: ...


@dataclass(frozen=True, slots=True)
class GatingStatus:
    """Read-back of the gating device."""

    t_ns: int
    source: int
    """0 off, else 1 + index into the site's gating sources."""
    gate_open: bool
    amplitude: float
    fault: bool
    heartbeat: int


class Gating(Connected, Protocol):
    """Respiratory gating; its gate line is wired to the engine's hold input."""

    async def select(self, source: int, deadline: Deadline) -> None: ...
    async def status(self, deadline: Deadline) -> GatingStatus: ...


@dataclass(frozen=True, slots=True)
class ChainStatus:
    """Read-back of the safety chain and of the independent sensors that its PLC carries."""

    t_ns: int
    closed: bool
    armed: bool
    arm_token: int
    open_cause: int
    """First-out cause since the last arm: 0 none, 1 permit time-out, 2 drop received, 3 emergency stop, 4 door,
    5 room not searched, 6 room not allocated, 7 operator abort button, 8 electrometer 2, 9 spot engine."""
    emergency_stop: bool
    door_closed: bool
    room_searched: bool
    room_allocated: bool
    permits_received: int
    permits_rejected: int
    energy_sensor_mev_u: float
    """Independent of the accelerator's control (dipole field probe)."""
    ion_sensor: str
    port_sensor_deg: float
    beam_present: bool
    """Independent beam-present detector."""
    chopper_open: bool
    """The chopper's own position switch."""
    heartbeat: int


class SafetyChain(Connected, Protocol):
    """Watchdog and PLC. The permit stream itself travels by UDP, not here."""

    async def open_session(self, session_nonce: int, time_out_ms: float, deadline: Deadline) -> None: ...
    async def arm(self, arm_token: int, deadline: Deadline) -> None:
        """Accept permits that carry this token; the chain closes with the first valid ones."""
        ...

    async def disarm(self, deadline: Deadline) -> None: ...
    async def test_chopper(self, deadline: Deadline) -> float:
        """Open and close the chopper behind the closed stopper; returns the time that closing took, ms."""
        ...

    async def status(self, deadline: Deadline) -> ChainStatus: ...
