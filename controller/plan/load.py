"""Load a plan of either format; the content decides which, never the name of the file."""

from __future__ import annotations

import math
from pathlib import Path

from controller.plan.dicom import parse_dicom
from controller.plan.dicom_structure import MAX_FILE_BYTES
from controller.plan.files import read_bytes
from controller.plan.findings import Finding
from controller.plan.loaded import LoadedPlan
from controller.plan.model import Plan
from controller.plan.rules import MalformedPlan, finding
from controller.plan.trip98 import FIRST_WORD, parse_trip98

__all__ = ["LoadedPlan", "load_plan"]


def load_plan(
    path: Path,
    *,
    fraction_group: int | None = None,
    gantry_deg: float | None = None,
    couch_deg: float | None = None,
    default_gantry_deg: float,
) -> LoadedPlan:
    """Load a plan whole, or not at all.

    Args:
        path: an RT Ion Plan or a TRiP98 raster file.
        fraction_group: DICOM's FractionGroupNumber; None takes the lowest, with a warning if there are several.
        gantry_deg: port for a raster file; None takes `default_gantry_deg`. Wrong usage with DICOM.
        couch_deg: couch rotation for a raster file; None takes 0. Wrong usage with DICOM.
        default_gantry_deg: the site's default port.

    Raises:
        BadInput: unreadable, malformed, of unknown format, or options that do not fit it (exit 2).
        Refused: a sound plan that asks for what this controller does not deliver (exit 3).

    """
    for name, angle in (("--gantry-deg", gantry_deg), ("--couch-deg", couch_deg)):
        if angle is not None and not (math.isfinite(angle) and abs(angle) <= 360.0):
            raise MalformedPlan(path.name, finding("WRONG_USAGE", name, f"wanted -360 to 360 degrees, got {angle}"))
    data = read_bytes(path, MAX_FILE_BYTES)
    if data[128:132] == b"DICM":
        if gantry_deg is not None or couch_deg is not None:
            message = "angles are for TRiP98 raster files; a DICOM plan has its own"
            raise MalformedPlan(path.name, finding("WRONG_USAGE", "--gantry-deg, --couch-deg", message))
        loaded = parse_dicom(path.name, data, fraction_group=fraction_group)
    elif data[:64].split(None, 1)[:1] == [FIRST_WORD]:
        if fraction_group not in (None, 1):
            message = f"fraction group {fraction_group} wanted, a raster file is group 1 alone"
            raise MalformedPlan(path.name, finding("FRACTION_GROUP_UNKNOWN", "--fraction-group", message))
        gantry = default_gantry_deg if gantry_deg is None else gantry_deg
        loaded = parse_trip98(path.name, data, gantry_deg=gantry, couch_deg=couch_deg)
    else:
        message = "wanted a DICOM file (DICM at byte 128) or a TRiP98 raster file (first word rstfile), got neither"
        raise MalformedPlan(path.name, finding("FORMAT_UNKNOWN", "", message))
    return LoadedPlan(loaded.plan, loaded.patient, loaded.findings + _remarks(loaded.plan))


def _remarks(plan: Plan) -> tuple[Finding, ...]:
    """What a reader of the plan should know, whatever the machine."""
    remarks = []
    if plan.setup_beams:
        names = ", ".join(repr(name) for name in plan.setup_beams)
        remarks.append(finding("SETUP_BEAMS_IGNORED", "", f"set-up beams {names} are not delivered"))
    isocentres = {field.isocenter_mm for field in plan.fields}
    if len(isocentres) > 1:
        remarks.append(finding("SEVERAL_ISOCENTRES", "", f"{len(isocentres)} different isocentres"))
    if len({field.unit for field in plan.fields}) > 1:
        remarks.append(finding("MIXED_UNITS", "", "fields in MU and fields in particles"))
    for field in plan.fields:
        zero = sum(layer.meterset.count(0.0) for layer in field.layers)
        if zero:
            remarks.append(finding("ZERO_WEIGHT_SPOTS", f"beam {field.number}", f"{zero} spots of zero weight"))
    return tuple(remarks)
