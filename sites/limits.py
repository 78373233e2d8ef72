"""What a site file stops the beam by: tolerances, permits, and the guard's own rules."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sites.devices import UdpEndpoint
from sites.table import Finite, Fraction, Positive, Table


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
