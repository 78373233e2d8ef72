"""Where gantry, couch and snout stand for a field: the first control point says so, no later one may change it."""

from __future__ import annotations

from dataclasses import dataclass

from controller.plan.dicom_values import Node
from controller.plan.findings import Finding
from controller.plan.model import CouchPosition
from controller.plan.rules import UnsupportedPlan, finding

_DECIMALS = (
    "GantryAngle",
    "PatientSupportAngle",
    "TableTopVerticalPosition",
    "TableTopLongitudinalPosition",
    "TableTopLateralPosition",
    "TableTopEccentricAngle",
)
_SINGLES = ("TableTopPitchAngle", "TableTopRollAngle", "GantryPitchAngle", "SnoutPosition", "HeadFixationAngle")
_DIRECTIONS = (
    "GantryRotationDirection",
    "PatientSupportRotationDirection",
    "BeamLimitingDeviceRotationDirection",
    "TableTopEccentricRotationDirection",
    "TableTopPitchRotationDirection",
    "TableTopRollRotationDirection",
    "GantryPitchRotationDirection",
)
_ZERO_ONLY = ("TableTopEccentricAngle", "GantryPitchAngle", "HeadFixationAngle")
_Values = dict[str, float | tuple[float, ...] | None]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Set-points of one field; angles in degrees (IEC 61217), positions in mm."""

    gantry_deg: float
    couch: CouchPosition
    snout_mm: float | None
    isocenter_mm: tuple[float, float, float] | None
    findings: tuple[Finding, ...]
    shown: tuple[tuple[str, str], ...]


def read_geometry(beam: Node, points: list[Node]) -> Geometry:
    """Read the geometry from the first control point and check that it holds for all.

    Raises:
        MalformedPlan: gantry or couch angle missing, or a value that is no angle.
        UnsupportedPlan: something moves within the field, or stands where this controller cannot put it.

    """
    first = points[0]
    support = beam.code("PatientSupportType")
    if not support:
        raise beam.missing("PatientSupportType")
    if support != "TABLE":
        raise _unsupported(beam, "PATIENT_SUPPORT_NOT_SUPPORTED", f"PatientSupportType is {support}")
    values = _values(first)
    for keyword in _ZERO_ONLY:
        if values[keyword] not in (None, 0.0):
            raise _unsupported(first, "PATIENT_SUPPORT_NOT_SUPPORTED", f"{keyword} is {values[keyword]}")
    for point in points[1:]:
        for keyword, value in _values(point).items():
            # Without a value in the first control point, later ones are relative to it (C.8.8.14.6).
            base = values[keyword] if values[keyword] is not None else 0.0
            if value is not None and value != base:
                raise _unsupported(point, "ARC_NOT_SUPPORTED", f"{keyword} changes from {base} to {value}")
    pitch, roll = _angle(first, "TableTopPitchAngle"), _angle(first, "TableTopRollAngle")
    findings = []
    if pitch is None or roll is None:
        findings.append(finding("COUCH_LEVEL_ASSUMED", beam.where, "pitch or roll is not given; 0 degrees is set"))
    isocenter = first.decimals("IsocenterPosition", 3)
    return Geometry(
        gantry_deg=_required_angle(first, "GantryAngle"),
        couch=CouchPosition(
            vertical_mm=first.optional_decimal("TableTopVerticalPosition"),
            longitudinal_mm=first.optional_decimal("TableTopLongitudinalPosition"),
            lateral_mm=first.optional_decimal("TableTopLateralPosition"),
            rotation_deg=_required_angle(first, "PatientSupportAngle"),
            pitch_deg=_signed(pitch or 0.0),
            roll_deg=_signed(roll or 0.0),
        ),
        snout_mm=first.optional_single("SnoutPosition"),
        isocenter_mm=None if isocenter is None else (isocenter[0], isocenter[1], isocenter[2]),
        findings=tuple(findings),
        shown=_shown(beam, first),
    )


def _values(point: Node) -> _Values:
    for keyword in _DIRECTIONS:
        direction = point.code(keyword)
        if direction in ("CW", "CC"):
            raise _unsupported(point, "ARC_NOT_SUPPORTED", f"{keyword} is {direction}")
        if direction not in ("", "NONE"):
            raise point.fail("BAD_VALUE", f"{keyword}: wanted NONE, CW or CC, got {direction!r}")
    values: _Values = {keyword: point.optional_decimal(keyword) for keyword in _DECIMALS}
    values.update({keyword: point.optional_single(keyword) for keyword in _SINGLES})
    values["IsocenterPosition"] = point.decimals("IsocenterPosition", 3)
    return values


def _angle(point: Node, keyword: str) -> float | None:
    value = point.optional_decimal(keyword) if keyword in _DECIMALS else point.optional_single(keyword)
    if value is not None and not -360.0 <= value <= 360.0:
        raise point.fail("BAD_VALUE", f"{keyword}: wanted -360 to 360 degrees, got {value:g}")
    return value


def _required_angle(point: Node, keyword: str) -> float:
    value = _angle(point, keyword)
    if value is None:
        raise point.missing(keyword)
    return value % 360.0 % 360.0  # twice: -1e-20 % 360.0 is 360.0


def _signed(angle_deg: float) -> float:
    """Bring an angle into -180 (excluded) to 180; pitch and roll come as 0..360 or signed."""
    angle = angle_deg % 360.0 % 360.0
    return angle - 360.0 if angle > 180.0 else angle


def _shown(beam: Node, first: Node) -> tuple[tuple[str, str], ...]:
    angle = first.optional_decimal("BeamLimitingDeviceAngle")
    if not angle:
        return ()
    return ((f"{beam.where}: BeamLimitingDeviceAngle (spots are not rotated by it)", f"{angle:g} deg"),)


def _unsupported(node: Node, rule: str, message: str) -> UnsupportedPlan:
    return UnsupportedPlan(node.file, finding(rule, node.where, message))
