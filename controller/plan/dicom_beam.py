"""One item of IonBeamSequence: radiation, devices in the beam, geometry, and its layers.

Whatever this controller cannot do (arcs, wheels, collimators, wedges ...) raises `UnsupportedPlan`; it is never
left out of a delivery.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from controller.plan.dicom_geometry import read_geometry
from controller.plan.dicom_layers import MAX_LAYERS, read_layers
from controller.plan.dicom_values import Node
from controller.plan.findings import Finding
from controller.plan.ions import MAX_MASS_NUMBER, SYMBOLS, ion_name
from controller.plan.model import MetersetUnit, PlanField
from controller.plan.rules import UnsupportedPlan, finding

MAX_METERSET: Final = 1e15
"""Far above any field (carbon fields have 1e9 ions), far below where products of weights overflow."""
MAX_VSAD_MM: Final = 1e6

_MODIFIERS = (
    ("NumberOfWedges", "IonWedgeSequence"),
    ("NumberOfCompensators", "IonRangeCompensatorSequence"),
    ("NumberOfBoli", "ReferencedBolusSequence"),
    ("NumberOfBlocks", "IonBlockSequence"),
)


@dataclass(frozen=True, slots=True)
class BeamHead:
    """What tells beams apart before any is read."""

    node: Node
    number: int
    name: str
    delivery: str
    """TreatmentDeliveryType."""
    patient_setup: int | None


@dataclass(frozen=True, slots=True)
class Beam:
    """A field, and what reading it had to remark."""

    field: PlanField
    findings: tuple[Finding, ...]
    shown: tuple[tuple[str, str], ...]


def unsupported(node: Node, rule: str, message: str) -> UnsupportedPlan:
    """Return the error for something that this controller does not deliver."""
    return UnsupportedPlan(node.file, finding(rule, node.where, message))


def read_head(node: Node) -> BeamHead:
    """Read number, name and delivery type of a beam."""
    number = node.integer("BeamNumber", -(2**31), 2**31 - 1)
    node = node.at(f"beam {number}")
    delivery = node.code("TreatmentDeliveryType")
    if not delivery:
        raise node.missing("TreatmentDeliveryType")
    name = node.text("BeamName")
    setup = node.optional_integer("ReferencedPatientSetupNumber", -(2**31), 2**31 - 1)
    return BeamHead(node, number, name, delivery, setup)


def read_beam(head: BeamHead, meterset: float) -> Beam:
    """Read one treatment beam whole.

    Args:
        head: the beam.
        meterset: its BeamMeterset in the chosen fraction group, above 0.

    Raises:
        MalformedPlan: something is missing, wrong, or contradicts itself.
        UnsupportedPlan: it is sound, but this controller does not deliver such a field.

    """
    node = head.node
    if not head.name:
        raise node.missing("BeamName")
    scan_mode = _scan_mode(node)
    _no_modifiers(node)
    count = node.integer("NumberOfControlPoints", 2, 10_000_000)
    points = _control_points(node)
    if count != len(points):
        raise node.fail("COUNT_MISMATCH", f"NumberOfControlPoints is {count}, items are {len(points)}")
    ion = _ion(node, points)
    final = node.decimal("FinalCumulativeMetersetWeight")
    if not 0 < final <= MAX_METERSET:
        raise node.fail("BAD_VALUE", f"FinalCumulativeMetersetWeight: wanted above 0, got {final:g}")
    shifter_ids = _range_shifters(node)
    layers = read_layers(node, points, final_weight=final, meterset=meterset, shifter_ids=shifter_ids)
    geometry = read_geometry(node, points)
    field = PlanField(
        number=head.number,
        name=head.name,
        machine_name=node.text("TreatmentMachineName"),
        ion=ion,
        unit=_unit(node),
        meterset=meterset,
        gantry_deg=geometry.gantry_deg,
        couch=geometry.couch,
        snout_id=_snout(node),
        snout_mm=geometry.snout_mm,
        vsad_mm=_vsad(node),
        ripple_filter=_ripple_filter(node),
        lateral_spreaders=_spreaders(node, points[0]),
        isocenter_mm=geometry.isocenter_mm,
        reordering_allowed=layers.reordering_allowed,
        scan_mode=scan_mode,
        control_points=count,
        layers=layers.layers,
    )
    return Beam(field, geometry.findings, geometry.shown)


def _control_points(node: Node) -> list[Node]:
    points = node.items("IonControlPointSequence", "control point", most=2 * MAX_LAYERS + 1)
    return [point.at(f"{node.where}, control point {index}") for index, point in enumerate(points)]


def _scan_mode(node: Node) -> str:
    beam_type = node.code("BeamType")
    if not beam_type:
        raise node.missing("BeamType")
    if beam_type not in ("STATIC", "DYNAMIC"):
        raise node.fail("BAD_VALUE", f"BeamType: wanted STATIC or DYNAMIC, got {beam_type!r}")
    if beam_type != "STATIC":
        raise unsupported(node, "ARC_NOT_SUPPORTED", "BeamType is DYNAMIC")
    mode = node.code("ScanMode")
    if not mode:
        raise node.missing("ScanMode")
    kind = node.code("ModulatedScanModeType")
    if mode == "MODULATED_SPEC" and not kind:
        raise node.missing("ModulatedScanModeType")
    if mode not in ("MODULATED", "MODULATED_SPEC") or kind not in ("", "STATIONARY"):
        raise unsupported(node, "SCAN_MODE_NOT_SUPPORTED", f"ScanMode is {mode} {kind}".rstrip())
    return mode


def _no_modifiers(node: Node) -> None:
    for counter, sequence in _MODIFIERS:
        count = node.integer(counter, 0, 1000)
        items = len(node.items(sequence, sequence, most=1000))
        if count or items:
            raise unsupported(node, "MODIFIER_NOT_SUPPORTED", f"{counter} is {count}, {sequence} has {items} items")
    for sequence in ("IonBeamLimitingDeviceSequence", "ApplicatorSequence"):
        if node.items(sequence, sequence, most=1000):
            raise unsupported(node, "MODIFIER_NOT_SUPPORTED", f"{sequence} is not empty")


def _ion(node: Node, points: list[Node]) -> str:
    radiation = node.code("RadiationType")
    if not radiation:
        raise node.missing("RadiationType")
    if radiation not in ("PROTON", "ION"):
        raise unsupported(node, "RADIATION_NOT_SUPPORTED", f"RadiationType is {radiation}")
    stated = _particle(node)
    if radiation == "PROTON":
        wanted: tuple[int, int, int] = (1, 1, 1)
        if any(got not in (None, want) for got, want in zip(stated, wanted, strict=True)):
            raise node.fail("BAD_VALUE", f"mass, atomic number and charge {stated} are not a proton's")
    else:
        mass, atomic, charge = stated
        if mass is None or atomic is None or charge is None:
            raise node.missing("RadiationMassNumber, RadiationAtomicNumber or RadiationChargeState")
        wanted = (mass, atomic, charge)
        if not atomic <= mass:
            raise node.fail("BAD_VALUE", f"no ion has mass number {mass} and atomic number {atomic}")
        if charge != atomic:
            raise unsupported(node, "RADIATION_NOT_SUPPORTED", f"charge state {charge} of atomic number {atomic}")
    for point in points:
        if any(got not in (None, want) for got, want in zip(_particle(point), wanted, strict=True)):
            raise unsupported(point, "RADIATION_NOT_SUPPORTED", "the ion changes within the field")
    return ion_name(wanted[0], wanted[1])


def _particle(node: Node) -> tuple[int | None, int | None, int | None]:
    return (
        node.optional_integer("RadiationMassNumber", 1, MAX_MASS_NUMBER),
        node.optional_integer("RadiationAtomicNumber", 1, len(SYMBOLS)),
        node.signed_short("RadiationChargeState", -1, 60),
    )


def _unit(node: Node) -> MetersetUnit:
    unit = node.code("PrimaryDosimeterUnit")
    units: dict[str, Literal["MU", "NP"]] = {"MU": "MU", "NP": "NP"}
    if not unit:
        raise node.missing("PrimaryDosimeterUnit")
    if unit not in units:
        raise node.fail("BAD_VALUE", f"PrimaryDosimeterUnit: wanted MU or NP, got {unit!r}")
    return units[unit]


def _vsad(node: Node) -> tuple[float, float]:
    distances = node.finite_singles("VirtualSourceAxisDistances", 2)
    if distances is None:
        raise node.missing("VirtualSourceAxisDistances")
    if min(distances) <= 0 or max(distances) > MAX_VSAD_MM:
        limits = f"wanted above 0, at most {MAX_VSAD_MM:g} mm"
        raise node.fail("BAD_VALUE", f"VirtualSourceAxisDistances: {limits}, got {distances}")
    return distances[0], distances[1]


def _snout(node: Node) -> str | None:
    snouts = node.items("SnoutSequence", "snout", most=10)
    if len(snouts) > 1:
        raise node.fail("COUNT_MISMATCH", f"SnoutSequence: at most one item, got {len(snouts)}")
    if not snouts:
        return None
    snout = snouts[0].text("SnoutID")
    if not snout:
        raise snouts[0].missing("SnoutID")
    return snout


def _counted(node: Node, counter: str, sequence: str, place: str) -> list[Node]:
    """Return the items of a device sequence; their number must be the one declared (type 1)."""
    count = node.integer(counter, 0, 100)
    items = node.items(sequence, place, most=100)
    if count != len(items):
        raise node.fail("COUNT_MISMATCH", f"{counter} is {count}, {sequence} has {len(items)} items")
    return items


def _numbered(items: list[Node], number_keyword: str, id_keyword: str) -> dict[int, tuple[Node, str]]:
    devices: dict[int, tuple[Node, str]] = {}
    for item in items:
        number = item.integer(number_keyword, -(2**31), 2**31 - 1)
        if number in devices:
            raise item.fail("DUPLICATE_NUMBER", f"{number_keyword} {number} occurs twice")
        name = item.text(id_keyword)
        if not name:
            raise item.missing(id_keyword)
        devices[number] = (item, name)
    return devices


def _range_shifters(node: Node) -> dict[int, str]:
    items = _counted(node, "NumberOfRangeShifters", "RangeShifterSequence", "range shifter")
    shifters = _numbered(items, "RangeShifterNumber", "RangeShifterID")
    for item, name in shifters.values():
        kind = item.code("RangeShifterType")
        if kind != "BINARY":
            if kind != "ANALOG":
                raise item.fail("BAD_VALUE", f"RangeShifterType: wanted BINARY or ANALOG, got {kind!r}")
            raise unsupported(item, "MODIFIER_NOT_SUPPORTED", f"range shifter {name} is of type ANALOG")
    return {number: name for number, (_, name) in shifters.items()}


def _spreaders(node: Node, first: Node) -> tuple[tuple[int, str], ...]:
    items = _counted(node, "NumberOfLateralSpreadingDevices", "LateralSpreadingDeviceSequence", "spreading device")
    spreaders = _numbered(items, "LateralSpreadingDeviceNumber", "LateralSpreadingDeviceID")
    for item, name in spreaders.values():
        kind = item.code("LateralSpreadingDeviceType")
        if kind != "MAGNET":
            raise unsupported(item, "MODIFIER_NOT_SUPPORTED", f"lateral spreading device {name} is of type {kind!r}")
    for item in first.items("LateralSpreadingDeviceSettingsSequence", "spreading device setting", most=100):
        number = item.integer("ReferencedLateralSpreadingDeviceNumber", -(2**31), 2**31 - 1)
        if number not in spreaders:
            raise item.fail("BAD_VALUE", f"lateral spreading device {number} is not in the beam")
    return tuple((number, name) for number, (_, name) in spreaders.items())


def _ripple_filter(node: Node) -> str | None:
    items = _counted(node, "NumberOfRangeModulators", "RangeModulatorSequence", "range modulator")
    modulators = _numbered(items, "RangeModulatorNumber", "RangeModulatorID")
    for item, name in modulators.values():
        kind = item.code("RangeModulatorType")
        if kind != "FIXED":
            raise unsupported(item, "MODIFIER_NOT_SUPPORTED", f"range modulator {name} is of type {kind!r}")
    if len(modulators) > 1:
        raise unsupported(node, "MODIFIER_NOT_SUPPORTED", f"{len(modulators)} range modulators, at most one is known")
    return next((name for _, name in modulators.values()), None)
