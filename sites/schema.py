"""What a site file may say: one frozen, strict model per table, units in the key names.

A site is one treatment room. The controller reads its calibration from here, the simulators their
plant (`simulation` holds what only the plant knows: true deviations and wire latencies).
Unknown keys are errors; `sites.loader` adds the line number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sites.adaptation import Adaptation
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
from sites.machines import MuCalibration, RangeShifter, RippleFilter, Snout, SpotSize, TreatmentMachine
from sites.qualification import Qualification
from sites.record import RecordRules
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


def _rising(values: Iterable[float]) -> bool:
    return all(b > a for a, b in itertools.pairwise(values))


class Accelerator(Table):
    """The machine up to the nozzle: energies, intensities, time structure."""

    kind: Literal["synchrotron", "cyclotron"]
    ions: tuple[IonName, ...] = Field(min_length=1)
    energy_min_mev_u: Positive
    energy_max_mev_u: Positive
    energy_grid_mev_u: Positive = 0.01
    energy_library_mev_u: tuple[Positive, ...] = ()
    """If not empty, only these energies exist and the grid is ignored."""
    energy_tolerance_mev_u: Positive = 0.006
    """A plan energy within this of an available one is set to that one; else it is refused."""
    energy_sensor_tolerance_mev_u: Positive = 0.2
    """Independent sensor against the set energy."""
    intensities_per_s: tuple[Positive, ...] = Field(min_length=1)
    """Particles per second of each level, rising, neighbours at most a factor 2 apart."""
    ripple_rms: Fraction
    """Intensity ripple that the machine is specified to stay below (rms, relative)."""
    flat_top_s: NotNegative
    """Longest extraction from one filling; 0: continuous beam."""
    gap_s: NotNegative
    """From the end of one flat-top to the start of the next, same or new energy."""
    particles_per_spill: NotNegative
    """Particles in one filling; 0: unlimited."""
    extraction_rise_ms: NotNegative
    extended_flat_top: bool = False
    """Multiple-energy extraction: falling energies follow inside one filling."""
    energy_step_s: NotNegative = 0.0
    """Energy change inside an extended flat-top, or of a cyclotron's degrader, downwards."""
    energy_step_up_s: NotNegative = 0.0
    """Energy change upwards of a cyclotron's degrader and beam line."""
    beam_on_delay_us: NotNegative
    beam_off_delay_us: NotNegative

    @model_validator(mode="after")
    def _levels(self) -> Self:
        levels = self.intensities_per_s
        if not _rising(levels):
            raise ValueError("intensities_per_s: levels must rise")
        if not _rising(self.energy_library_mev_u):
            raise ValueError("energy_library_mev_u: energies must rise")
        if any(b > 2.0000001 * a for a, b in itertools.pairwise(levels)):
            raise ValueError("intensities_per_s: neighbouring levels must be at most a factor 2 apart")
        if self.energy_max_mev_u <= self.energy_min_mev_u:
            raise ValueError("energy_max_mev_u: must be above energy_min_mev_u")
        return self


class ScanAxis(Table):
    """One scanning magnet with its supply."""

    tesla_metre_per_a: Positive
    """Integrated field per ampere (calibrated)."""
    max_current_a: Positive
    slew_a_per_s: Positive
    settle_us: NotNegative
    """Time after a step until the field is inside the window."""
    window_a: Positive
    """Read-back window: beam starts only inside it."""
    uncertainty: Fraction
    """Relative standard uncertainty of the calibration."""


class CalibrationPoint(Table):
    """Correction of aim at one energy, fitted to measured spots; mm at isocentre.

    For the beam to arrive at (x, y), the magnets are set as if geometry alone had to reach
    (x', y') = (xx x + xy y + x0, yx x + yy y + y0).
    """

    energy_mev_u: Positive
    xx: Finite = 1.0
    xy: Finite = 0.0
    yx: Finite = 0.0
    yy: Finite = 1.0
    x0_mm: Finite = 0.0
    y0_mm: Finite = 0.0


class Stepping(Table):
    """What a laboratory without a spot engine must hold in step mode; `check` and prepare refuse what cannot."""

    electrometer_reaction_us: NotNegative
    """From the preset's last count to the fall of its output."""
    dead_time_ms: Positive
    """Longest time from the end of one spot's beam to the next spot's, with the host's and the links' share."""
    transactions: int = Field(default=500, ge=100, le=10_000)
    """How many of each link are timed at prepare."""


class Scanning(Adaptation):
    """Scan magnets and the spot engine, and what may follow its measurements."""

    engine: Literal["device", "step"] = "device"
    """device: a spot engine steps the magnets and ends spots. step: plain supplies and an electrometer with a spot
    preset; the PC sets magnets and presets spot by spot, the electrometer ends the spot."""
    stepping: Stepping | None = None
    """Engine step: its limits."""
    x: ScanAxis
    y: ScanAxis
    mode: Literal["raster", "discrete"]
    gap_beam_off_mm: Positive
    """Raster: a move longer than this is made with beam off."""
    max_visits_per_layer: int = Field(default=16384, ge=1, le=16384)
    calibration: tuple[CalibrationPoint, ...] = ()
    """Rising energies; interpolated linearly, held constant outside. Empty: no correction."""

    @model_validator(mode="after")
    def _stepping(self) -> Self:
        if (self.engine == "step") != (self.stepping is not None):
            raise ValueError("stepping: must be given with engine step, and only then")
        if self.engine == "step" and self.mode != "discrete":
            raise ValueError("mode: engine step needs discrete: nothing moves the magnets while beam is on")
        return self

    @model_validator(mode="after")
    def _usable_calibration(self) -> Self:
        if not _rising(point.energy_mev_u for point in self.calibration):
            raise ValueError("calibration: energies must rise")
        for point in self.calibration:
            # With these bounds no mix of two points can be singular, and no axis swapped or mirrored.
            if not (0.5 <= point.xx <= 2 and 0.5 <= point.yy <= 2 and max(abs(point.xy), abs(point.yx)) <= 0.2):
                raise ValueError(
                    f"calibration: at {point.energy_mev_u:g} MeV/u xx and yy must be 0.5 to 2, xy and yx -0.2 to 0.2"
                )
        return self


class Chamber(Table):
    """One integral ionisation chamber with its electrometer."""

    gap_mm: Positive
    high_voltage_v: Positive
    gas: Literal["air", "nitrogen"]
    quantum_fc: Annotated[float, Field(gt=0, le=10.0)]
    """Charge per count."""
    gain: Positive = 1.0
    """Calibration factor: true charge per particle = gain x model charge per particle."""
    gain_uncertainty: Fraction = 0.01
    lag_us: NotNegative
    """Mean delay of collected charge behind the beam (ion drift)."""
    ks_per_particle_s: NotNegative = 0.0
    """Volume recombination: ks = 1 + this x particles/s."""
    ks_uncertainty: Fraction = 0.2
    """Relative standard uncertainty of that."""
    saturation_counts_per_s: Positive


StripNumber = Annotated[int, Field(ge=0, le=127)]


class Strips(Table):
    """The strip planes in front of isocentre (electrometer 1)."""

    count: Literal[128] = 128
    pitch_x_mm: Positive
    pitch_y_mm: Positive
    distance_mm: NotNegative
    """From the strip planes to isocentre, along the beam."""
    bad_x: tuple[StripNumber, ...] = ()
    """Strips known to be dead or hot, 0 to 127: filled from their neighbours, and the spots say so."""
    bad_y: tuple[StripNumber, ...] = ()
    bad_max: int = Field(default=4, ge=0, le=64)
    """More bad strips than this in a plane, known ones included, stop the beam."""
    hot_units: Positive = 50.0
    """A strip whose pedestal is farther from zero than this (1/16 count a frame) is hot."""
    noise_units: NotNegative = 2.0
    """Standard deviation of a strip's reading in a frame, in the same units."""
    bias_share: Positive = 0.5
    """Bad strips that may move a centroid by more than this share of its position limit stop the beam."""

    @model_validator(mode="after")
    def _few_bad(self) -> Self:
        for axis, bad in (("x", self.bad_x), ("y", self.bad_y)):
            if len(set(bad)) != len(bad) or len(bad) > self.bad_max:
                raise ValueError(f"bad_{axis}: must name each strip once, and no more than bad_max = {self.bad_max}")
        return self


class Dosimetry(Table):
    """Dose monitors and the air they stand in."""

    primary: Chamber
    secondary: Chamber
    strips: Strips
    reference_temperature_c: Finite = 20.0
    reference_pressure_hpa: Positive = 1013.25
    temperature_uncertainty_k: NotNegative = 0.5
    """Standard uncertainty of the sensor, and of the air in the chambers against it."""
    pressure_uncertainty_hpa: NotNegative = 1.0
    two_gap_limit: Positive = 0.002
    """Relative dose at the highest intensity by which the chambers may disagree on recombination."""
    ktp_min: Positive = 0.9
    ktp_max: Positive = 1.15


class Gantry(Table):
    """Where the beam can come from."""

    kind: Literal["fixed", "rotating"]
    ports_deg: tuple[Finite, ...] = ()
    """Fixed: the ports. Rotating: empty."""
    default_deg: Finite
    tolerance_deg: Positive
    speed_deg_per_s: Positive


class Couch(Table):
    """The patient positioner."""

    tolerance_mm: Positive
    tolerance_deg: Positive
    max_pitch_roll_deg: NotNegative
    range_mm: tuple[Finite, Finite] = (-1000.0, 1000.0)
    """Least and greatest vertical, longitudinal and lateral position."""
    speed_mm_per_s: Positive
    speed_deg_per_s: Positive


class Nozzle(Table):
    """Snout and range modifiers."""

    snout_tolerance_mm: Positive
    snout_speed_mm_per_s: Positive
    insert_time_s: NotNegative


class Gating(Table):
    """Respiratory gating."""

    sources: tuple[str, ...] = ()
    hold_max_s: Positive = 60.0
    """A longer hold interrupts the treatment."""
    holds_max: int = Field(default=1000, ge=1)


class Tolerances(Table):
    """When delivery stops."""

    position_mm: Positive = 1.0
    """Trip limit is max(position_mm, position_sigma x sigma), below position_spacing x spot spacing."""
    position_sigma: Positive = 0.5
    position_spacing: Positive = 0.75
    position_mean_mm: Positive = 0.7
    """Running mean over 20 visits."""
    width: Positive = 0.20
    spot_dose: Positive = 0.05
    spot_dose_counts: Positive = 3.0
    field_dose: Positive = 0.01
    """Over-dose of a field on either monitor, beyond which delivery trips."""
    field_dose_counts: Positive = 200.0
    monitor_disagreement: Positive = 0.03
    """Primary against secondary, over a field, once both have monitor_disagreement_counts."""
    monitor_disagreement_counts: Positive = 5000.0
    pedestal_counts_per_s: Positive = 1000.0
    """A monitor that counts faster than this without beam trips."""
    secondary_spot: Positive = 0.05
    """Electrometer 2's backup: planned + max(this, secondary_spot_counts)."""
    secondary_spot_counts: Positive = 60.0
    rate_factor: Positive = 2.0
    """Rate above this x the layer's level trips."""
    beam_off_proof_ms: Positive = 2.0
    minimum_counts: Positive = 200.0
    """Centroid and width are judged once a visit has this many counts."""
    spot_time_factor: Positive = 2.0
    spot_time_floor_ms: Positive = 10.0


class Permits(Table):
    """The permit stream and the chain."""

    required: tuple[Literal["controller", "guard"], ...] = ("controller",)
    time_out_ms: Positive
    lease_ms: Annotated[float, Field(gt=0, le=100.0)] = 100.0
    frame_age_max_ms: Positive
    """No permit is sent for an older frame."""
    stale_ms: Positive
    """A monitor stream silent for this long trips."""
    clock_drift_max_ms: Positive = 20.0
    """A stream's clock offset may move this far in a field: 33 ppm over ten minutes; quartz clocks keep within 50."""
    key_hex: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    """Key of the permit MAC, only where every device is simulated."""
    key_file: str | None = None

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if (self.key_hex is None) == (self.key_file is None):
            raise ValueError("key_hex: give exactly one of key_hex and key_file")
        return self


class GuardRules(Table):
    """The guard: its own addresses, and what it goes by. Limits of dose are the plan's and `tolerances`."""

    frames: UdpEndpoint
    """Where electrometer 2 sends its second stream of frames."""
    link: UdpEndpoint
    """Where the guard listens to the controller, on loopback."""
    poll_hz: Positive = 4.0
    """How often it asks the chain's PLC; electrometer 2's registers four times less."""
    max_age_ms: Positive = 800.0
    """The chain's sensors must not be older."""
    agreement: Fraction = 0.001
    """The controller's limits may differ from the guard's own by so much."""
    beam_time_factor: Positive = 1.2
    """Beam-on time over the planned one."""
    temperature_c: tuple[Finite, Finite] = (10.0, 35.0)
    """Air in a treatment room; outside it the sensor is wrong."""
    pressure_hpa: tuple[Finite, Finite] = (850.0, 1080.0)
    ktp_jump: Fraction = 0.05
    """Largest relative change of kTP since the last treatment: weather moves it by 3 % a day."""
    gain: tuple[Finite, Finite] = (0.8, 1.25)
    """Plausible calibration factors of electrometer 2."""
    calibration_jump: Fraction = 0.02
    """Largest relative change of counts per particle since the last treatment."""


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
