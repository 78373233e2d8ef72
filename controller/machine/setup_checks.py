"""Whether the room can be set up as a field wants: gantry, couch, snout, inserts, tunes, source distances."""

from __future__ import annotations

from collections.abc import Iterator

from controller.machine.inserts import match_range_shifter, match_ripple_filter, match_snout, wanted_range_shifters
from controller.machine.site_rules import site_finding
from controller.plan.findings import Finding
from controller.plan.model import PlanField
from sites.schema import Site, TreatmentMachine

VSAD_TOLERANCE_MM = 1.0
"""A millimetre in 2 m moves the outermost spot by 0.1 mm."""


def setup_problems(site: Site, machine: TreatmentMachine, field: PlanField) -> Iterator[Finding]:
    """Findings about everything that is set before the first layer of the field."""
    yield from _gantry(site, field)
    yield from _couch(site, field)
    yield from _nozzle(machine, field)
    where = f"beam {field.number}"
    unknown = sorted({layer.tune_id for layer in field.layers} - set(machine.tune_ids))
    if unknown:
        yield site_finding(
            "TUNE_ID",
            where,
            f"unknown tune {', '.join(map(repr, unknown))}; the machine has {_listed(machine.tune_ids)}",
        )
    if field.vsad_mm is not None:
        vsad = (machine.vsad_x_mm, machine.vsad_y_mm)
        if any(abs(plan - own) > VSAD_TOLERANCE_MM for plan, own in zip(field.vsad_mm, vsad, strict=True)):
            yield site_finding(
                "VSAD_MISMATCH",
                where,
                f"virtual source distances x {field.vsad_mm[0]:g}, y {field.vsad_mm[1]:g} mm in the plan; the machine "
                f"has x {vsad[0]:g}, y {vsad[1]:g} mm (tolerance {VSAD_TOLERANCE_MM:g} mm)",
            )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _gantry(site: Site, field: PlanField) -> Iterator[Finding]:
    gantry, angle = site.gantry, field.gantry_deg
    where = f"beam {field.number}"
    if gantry.kind == "rotating":
        if not -180.0 <= angle <= 360.0:
            yield site_finding("GANTRY_ANGLE", where, f"gantry angle {angle:g} degrees is outside -180 to 360")
        return
    away = [abs((angle - port + 180.0) % 360.0 - 180.0) for port in gantry.ports_deg]
    if not min(away) <= gantry.tolerance_deg:
        ports = ", ".join(f"{port:g}" for port in gantry.ports_deg)
        yield site_finding("GANTRY_ANGLE", where, f"no port at {angle:g} degrees; the room has fixed ports at {ports}")


def _couch(site: Site, field: PlanField) -> Iterator[Finding]:
    couch, wanted = site.couch, field.couch
    where = f"beam {field.number}"
    if not 0.0 <= wanted.rotation_deg <= 360.0:
        yield site_finding(
            "COUCH_ROTATION", where, f"couch rotation {wanted.rotation_deg:g} degrees is outside 0 to 360"
        )
    limit = couch.max_pitch_roll_deg
    for name, angle in (("pitch", wanted.pitch_deg), ("roll", wanted.roll_deg)):
        signed = (angle + 180.0) % 360.0 - 180.0  # DICOM may write -5 degrees as 355
        if not abs(signed) <= limit:
            yield site_finding("COUCH_PITCH_ROLL", where, f"couch {name} {angle:g} degrees; the couch has +-{limit:g}")
    low, high = couch.range_mm
    for name, value in (
        ("vertical", wanted.vertical_mm),
        ("longitudinal", wanted.longitudinal_mm),
        ("lateral", wanted.lateral_mm),
    ):
        if value is not None and not low <= value <= high:
            yield site_finding("COUCH_RANGE", where, f"couch {name} {value:g} mm is outside {low:g} to {high:g} mm")


def _nozzle(machine: TreatmentMachine, field: PlanField) -> Iterator[Finding]:
    where = f"beam {field.number}"
    snout = match_snout(machine, field)
    if snout is None:
        if field.snout_id is not None:
            have = _listed(tuple(item.id for item in machine.snouts))
            yield site_finding("SNOUT", where, f"no snout {field.snout_id!r}; the machine has {have}")
        elif field.snout_mm is not None:
            yield site_finding("SNOUT", where, f"snout position {field.snout_mm:g} mm, but the plan names no snout")
    elif field.snout_mm is not None and not snout.min_mm <= field.snout_mm <= snout.max_mm:
        yield site_finding(
            "SNOUT",
            where,
            f"snout {snout.id} at {field.snout_mm:g} mm; it reaches {snout.min_mm:g} to {snout.max_mm:g} mm",
        )
    settings = wanted_range_shifters(field)
    if len(settings) > 1:
        yield site_finding(
            "RANGE_SHIFTER", where, "the range shifter changes within the field; the nozzle sets one a field"
        )
    elif any(len(setting) > 1 for setting in settings):
        yield site_finding("RANGE_SHIFTER", where, "several range shifters at once; the nozzle holds one")
    for setting in sorted({item for group in settings for item in group}, key=lambda item: (item.id, item.number)):
        if match_range_shifter(machine, setting) is None:
            have = ", ".join(f"{item.id} ({item.wet_mm:g} mm)" for item in machine.range_shifters) or "none"
            thickness = "" if setting.wet_mm is None else f" of {setting.wet_mm:g} mm water"
            yield site_finding(
                "RANGE_SHIFTER", where, f"no range shifter {setting.id!r}{thickness}; the machine has {have}"
            )
    if field.ripple_filter and match_ripple_filter(machine, field.ripple_filter) is None:
        have = ", ".join(f"{item.id} ({item.thickness_mm:g} mm)" for item in machine.ripple_filters) or "none"
        yield site_finding("RIPPLE_FILTER", where, f"no ripple filter {field.ripple_filter!r}; the machine has {have}")
