"""The plan as the controller delivers it: immutable, hashable, in physical units.

Positions are mm in the plane of the isocentre, IEC 61217 gantry system. A meterset is in the field's unit
(MU or NP), absolute (weight x BeamMeterset / FinalCumulativeMetersetWeight), and is the total over all
paintings. Patient identity is a value of its own: nothing in a `Plan` names a person.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any, Literal

MetersetUnit = Literal["MU", "NP"]


@dataclass(frozen=True, slots=True)
class RangeShifterSetting:
    """A range shifter that a field wants in the beam."""

    number: int
    id: str
    wet_mm: float | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One energy layer; the three tuples have one entry a spot, in the order of delivery."""

    energy_mev_u: float
    tune_id: str
    paintings: int
    x_mm: tuple[float, ...]
    y_mm: tuple[float, ...]
    meterset: tuple[float, ...]
    spot_fwhm_mm: tuple[float, float] | None
    range_shifters: tuple[RangeShifterSetting, ...]
    control_point: int
    """Index of the control point that holds the weights (TRiP98: twice the layer's number)."""

    @property
    def spots(self) -> int:
        """Number of spots, zero-weight ones included."""
        return len(self.meterset)


@dataclass(frozen=True, slots=True)
class CouchPosition:
    """Couch set-points; None stays where it is (its read-back is recorded)."""

    vertical_mm: float | None
    longitudinal_mm: float | None
    lateral_mm: float | None
    rotation_deg: float
    pitch_deg: float
    roll_deg: float


@dataclass(frozen=True, slots=True)
class PlanField:
    """One field (a DICOM beam)."""

    number: int
    name: str
    machine_name: str
    """TreatmentMachineName, or '' (TRiP98: the site decides)."""
    ion: str
    """'1H', '12C', or whatever the plan asks for, such as '4He'."""
    unit: MetersetUnit
    meterset: float
    """BeamMeterset: sum over all layers, to the plan's rounding."""
    gantry_deg: float
    couch: CouchPosition
    snout_id: str | None
    snout_mm: float | None
    vsad_mm: tuple[float, float] | None
    """Virtual source axis distances (x, y); None where the format has none (TRiP98)."""
    ripple_filter: str | None
    """Id or description of a ripple filter (range modulator of type FIXED, TRiP98 'ripplefilter')."""
    lateral_spreaders: tuple[tuple[int, str], ...]
    """(number, id) of lateral spreading devices that the plan lists; echoed in the record."""
    isocenter_mm: tuple[float, float, float] | None
    reordering_allowed: bool
    scan_mode: str
    control_points: int
    """Number of control points in the plan, for the record."""
    layers: tuple[Layer, ...]

    @property
    def spots(self) -> int:
        """Number of spots of all layers, zero-weight ones included."""
        return sum(layer.spots for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Plan:
    """One fraction group of one plan, ready to be checked against a site."""

    format: Literal["dicom", "trip98"]
    label: str
    sop_instance_uid: str
    """'' for TRiP98."""
    approval: Literal["APPROVED", "UNAPPROVED", "REJECTED", "NONE"]
    """NONE: the format has no approval, or the plan does not say."""
    fraction_group: int
    fraction_groups: tuple[int, ...]
    """Numbers of all groups in the file."""
    fractions_planned: int | None
    gating: tuple[str, str] | None
    """(technique, signal source) of the motion synchronisation, or None."""
    patient_position: str | None
    fields: tuple[PlanField, ...]
    """Treatment fields in the order of the file; never set-up beams."""
    setup_beams: tuple[str, ...]
    shown: tuple[tuple[str, str], ...]
    """What the file says and Spotwise shows without obeying, such as TRiP98's angles."""
    file_sha256: str

    def content_sha256(self) -> str:
        """Hash of the meaning: equal for equal plans, whatever file they came from."""
        content = _fields(self)
        del content["file_sha256"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_fields)
        return hashlib.sha256(text.encode()).hexdigest()


def _fields(value: Any) -> dict[str, Any]:
    """One level of `dataclasses.asdict`: that one copies every number of a plan, which takes ten times longer."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


@dataclass(frozen=True, slots=True)
class PatientIdentity:
    """Whom the plan is for. Goes to DICOM records alone: never to logs, telemetry, reports or file names."""

    name: str
    id: str
    birth_date: str
    sex: str
    study_instance_uid: str
    study_date: str
    study_time: str
    study_id: str
    accession_number: str
    referring_physician: str
    frame_of_reference_uid: str

    def pseudonym(self, key: bytes) -> str:
        """A stable short name for logs and ledger.

        Says nothing about the person to whoever has not the room's key: names and birth dates can be guessed, and a
        plain hash of them could be tried.
        """
        who = f"{self.id}\0{self.name}\0{self.birth_date}".encode()
        return f"P-{hmac.new(key, who, hashlib.sha256).hexdigest()[:16]}"
