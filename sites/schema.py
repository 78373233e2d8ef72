"""What a site file may say: one frozen, strict model per table, units in the key names.

A site is one treatment room. The controller reads its calibration from here, the simulators their
plant (`simulation` holds what only the plant knows: true deviations and wire latencies).
Unknown keys are errors; `sites.loader` adds the line number.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Self

from pydantic import Field, model_validator

from sites.accelerator import Accelerator
from sites.devices import (
    DEVICE_NAMES,
    Address,
    AsciiAddress,
    Device,
    Devices,
    RtuAddress,
    Streams,
    TcpAddress,
    UdpEndpoint,
)
from sites.dosimetry import Chamber, Dosimetry, Strips
from sites.limits import GuardRules, Permits, Tolerances
from sites.machines import MuCalibration, RangeShifter, RippleFilter, Snout, SpotSize, TreatmentMachine
from sites.qualification import Qualification
from sites.record import RecordRules
from sites.room import Couch, Gantry, Gating, Nozzle
from sites.scanning import CalibrationPoint, ScanAxis, Scanning, Stepping
from sites.simulation import Simulation
from sites.table import Finite, Fraction, IonName, NotNegative, Positive, Table

__all__ = [
    "DEVICE_NAMES",
    "Accelerator",
    "Address",
    "AsciiAddress",
    "CalibrationPoint",
    "Chamber",
    "Couch",
    "Device",
    "Devices",
    "Dosimetry",
    "Finite",
    "Fraction",
    "Gantry",
    "Gating",
    "GuardRules",
    "IonName",
    "MuCalibration",
    "NotNegative",
    "Nozzle",
    "Operators",
    "Permits",
    "Positive",
    "Qualification",
    "RangeShifter",
    "RecordRules",
    "RippleFilter",
    "RtuAddress",
    "ScanAxis",
    "Scanning",
    "Simulation",
    "Site",
    "Snout",
    "SpotSize",
    "Stepping",
    "Streams",
    "Strips",
    "Table",
    "TcpAddress",
    "Telemetry",
    "Tolerances",
    "TreatmentMachine",
    "UdpEndpoint",
]


class Telemetry(Table):
    """MQTT, publish only."""

    enabled: bool = True
    url: str = "mqtt://127.0.0.1:18830"
    """mqtt:// or mqtts://, host and port."""
    embedded_broker: bool = True
    """Start the bundled broker at url (loopback only) for a run that finds none there."""
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    queue_limit: int = Field(default=1000, ge=10)


class Operators(Table):
    """Who may arm and reset, by name; `interlocks.roles` says who may do what."""

    names: tuple[str, ...] = Field(min_length=1)
    physicists: tuple[str, ...] = ()
    """Those of `names` who may reset what the interlock matrix reserves to a physicist."""
    confirmation_s: Positive = 300.0
    """From the confirmation of patient and position to arming, at most."""

    @model_validator(mode="after")
    def _each_names_somebody(self) -> Self:
        for name in self.names:
            if not name or name != name.strip():
                raise ValueError(f"names: {name!r} names nobody, being empty or with blanks around it")
        return self

    @model_validator(mode="after")
    def _physicists_are_operators(self) -> Self:
        unknown = [name for name in self.physicists if name not in self.names]
        if unknown:
            raise ValueError(f"physicists: {', '.join(unknown)} is not one of names")
        return self


class Site(Table):
    """One treatment room."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]
    title: str
    research: bool
    """A research site may deliver unapproved plans (with --allow-unapproved) and TRiP98 files."""
    accelerator: Accelerator
    scanning: Scanning
    dosimetry: Dosimetry
    treatment_machines: dict[str, TreatmentMachine] = Field(min_length=1)
    trip98_machine: dict[IonName, str]
    """Which treatment machine a TRiP98 file of an ion means."""
    gantry: Gantry
    couch: Couch
    nozzle: Nozzle
    gating: Gating = Gating()
    tolerances: Tolerances
    permits: Permits
    devices: Devices
    streams: Streams
    guard: GuardRules | None = None
    """Needed where `permits.required` names the guard."""
    telemetry: Telemetry = Telemetry()
    qualification: Qualification = Qualification()
    record: RecordRules = RecordRules()
    operators: Operators
    simulation: Simulation

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for ion, name in self.trip98_machine.items():
            if name not in self.treatment_machines:
                raise ValueError(f"trip98_machine.{ion}: {name!r} is not in treatment_machines")
            if self.treatment_machines[name].ion != ion:
                raise ValueError(f"trip98_machine.{ion}: {name!r} is not a machine for {ion}")
        for name, machine in self.treatment_machines.items():
            if machine.ion not in self.accelerator.ions:
                raise ValueError(f"treatment_machines.{name}.ion: {machine.ion} is not in accelerator.ions")
        distances = {min(m.vsad_x_mm, m.vsad_y_mm) for m in self.treatment_machines.values()}
        if self.dosimetry.strips.distance_mm >= min(distances):
            raise ValueError("dosimetry.strips.distance_mm: must be less than all virtual source distances")
        places = [device.address.place for _, device in self.devices.items()]
        for place in places:
            if places.count(place) > 1:
                raise ValueError(f"devices: {place} is the address of several devices")
        if self.streams.frames == self.streams.permits:
            raise ValueError("streams: frames and permits must go to different ports")
        if "guard" in self.permits.required and self.guard is None:
            raise ValueError("guard: missing, but permits.required names the guard")
        if self.guard is not None:
            ends = [self.streams.frames, self.streams.permits, self.guard.frames, self.guard.link]
            if any(a == b for a, b in itertools.combinations(ends, 2)):
                raise ValueError("guard: frames and link must have ports of their own")
        any_real = any(d.kind == "real" for _, d in self.devices.items())
        if any_real and self.permits.key_hex is not None:
            raise ValueError("permits.key_hex: is for all-simulated sites; use key_file with a real device")
        if any_real and self.permits.time_out_ms > 50:
            raise ValueError("permits.time_out_ms: above 50 is allowed only where every device is simulated")
        if (self.gantry.kind == "fixed") != bool(self.gantry.ports_deg):
            raise ValueError("gantry.ports_deg: must be given for a fixed gantry, and only for one")
        return self

    @property
    def all_simulated(self) -> bool:
        """True where no device of the room is real."""
        return all(d.kind == "simulated" for _, d in self.devices.items())
