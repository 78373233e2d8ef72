"""Small, valid RT Ion Plans, made to order with pydicom: what unit tests start from and then break."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

ION_PLAN = "1.2.840.10008.5.1.4.1.1.481.8"
ROOT_UID = "1.2.826.0.1.3680043.8.498.77"
PARTICLES = {"12C": (12, 6), "4He": (4, 2), "16O": (16, 8)}


def grid(count: int = 9, weight: float = 2.0, pitch_mm: float = 4.0) -> list[tuple[float, float, float]]:
    """Return x, y and weight of `count` spots on a square grid around the axis."""
    side = int(np.ceil(np.sqrt(count)))
    return [
        ((i % side - side // 2) * pitch_mm, (i // side - side // 2) * pitch_mm, weight + 0.125 * (i % 3))
        for i in range(count)
    ]


@dataclass
class LayerSpec:
    """One layer; weights are in the unit of the beam unless the beam has a `final_weight`."""

    energy_mev_u: float
    spots: list[tuple[float, float, float]] = field(default_factory=grid)
    paintings: int = 1
    tune: str = "1"
    fwhm_mm: tuple[float, float] | None = (6.0, 5.5)
    reordering: str | None = None
    range_shifter: str | None = None
    """Setting given at this layer's first control point; None: carried forward."""


def default_layers() -> list[LayerSpec]:
    """Return three layers of nine spots, falling energy."""
    return [LayerSpec(energy) for energy in (250.0, 240.0, 230.0)]


@dataclass
class BeamSpec:
    """One beam."""

    number: int = 1
    name: str = "F1"
    ion: str = "12C"
    unit: str = "MU"
    machine: str = "REF-C"
    gantry_deg: float = 90.0
    couch_deg: float = 0.0
    layers: list[LayerSpec] = field(default_factory=default_layers)
    one_point_per_layer: bool = False
    final_weight: float | None = None
    """FinalCumulativeMetersetWeight; the weights are scaled to it, BeamMeterset stays."""
    range_shifter: tuple[int, str, float | None] | None = None
    """Number, id and WET; its setting at control point 0 is IN unless the first layer says otherwise."""
    ripple_filter: str | None = None
    delivery: str = "TREATMENT"
    snout: str | None = "S1"
    snout_mm: float | None = 200.0
    vsad_mm: tuple[float, float] = (9000.0, 8500.0)
    patient_setup: int | None = 1
    isocenter_mm: tuple[float, float, float] | None = (0.0, 0.0, 0.0)
    table_mm: tuple[float, float, float] | None = None
    magnets: bool = False
    scan_mode: str = "MODULATED"

    @property
    def meterset(self) -> float:
        return float(sum(np.float32(w) for layer in self.layers for _, _, w in layer.spots))


@dataclass
class SetupSpec:
    """One patient set-up."""

    number: int = 1
    position: str = "HFS"
    motion: tuple[str, str] | None = None


def make_plan(
    beams: Sequence[BeamSpec] | None = None,
    *,
    groups: dict[int, dict[int, float | None]] | None = None,
    setups: Sequence[SetupSpec] = (SetupSpec(),),
    approval: str | None = "APPROVED",
    fractions: int = 10,
) -> Dataset:
    """Make a plan.

    `groups`: BeamMeterset by beam number for each fraction group; by default one group of all treatment beams.
    """
    beams = [BeamSpec()] if beams is None else beams
    if groups is None:
        groups = {1: {b.number: b.meterset for b in beams if b.delivery == "TREATMENT"}}
    plan = Dataset()
    plan.SpecificCharacterSet = "ISO_IR 192"
    plan.SOPClassUID, plan.SOPInstanceUID = UID(ION_PLAN), UID(f"{ROOT_UID}.1")
    plan.StudyDate, plan.StudyTime, plan.AccessionNumber, plan.Modality = "20260301", "113000", "", "RTPLAN"
    plan.Manufacturer, plan.ReferringPhysicianName = "Spotwise tests", ""
    plan.PatientName, plan.PatientID, plan.PatientBirthDate, plan.PatientSex = "PHANTOM^TEST", "T-1", "19700101", "O"
    plan.StudyInstanceUID, plan.SeriesInstanceUID = UID(f"{ROOT_UID}.2"), UID(f"{ROOT_UID}.3")
    plan.StudyID, plan.SeriesNumber = "1", 1
    plan.FrameOfReferenceUID, plan.PositionReferenceIndicator = UID(f"{ROOT_UID}.4"), ""
    plan.RTPlanLabel, plan.RTPlanDate, plan.RTPlanTime, plan.RTPlanGeometry = (
        "TEST",
        "20260301",
        "120000",
        "TREATMENT_DEVICE",
    )
    plan.FractionGroupSequence = [_group(number, metersets, fractions) for number, metersets in groups.items()]
    plan.PatientSetupSequence = [_setup(setup) for setup in setups]
    plan.IonBeamSequence = [_beam(beam) for beam in beams]
    if approval is not None:
        plan.ApprovalStatus = approval
    return plan


def plan_bytes(plan: Dataset, *, implicit: bool = False) -> bytes:
    """Return the plan as a DICOM file; values that do not fit 64 kB become VR UN in explicit VR, as they must."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = plan.get("SOPClassUID", ION_PLAN)
    meta.MediaStorageSOPInstanceUID = plan.get("SOPInstanceUID", f"{ROOT_UID}.1")
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(f"{ROOT_UID}.9")
    plan.file_meta = meta
    buffer = io.BytesIO()
    plan.save_as(buffer, enforce_file_format=True, implicit_vr=implicit, little_endian=True)
    return buffer.getvalue()


def write_plan(path: Path, plan: Dataset, *, implicit: bool = False) -> Path:
    """Write the plan as a DICOM file."""
    path.write_bytes(plan_bytes(plan, implicit=implicit))
    return path


def _group(number: int, metersets: dict[int, float | None], fractions: int) -> Dataset:
    group = Dataset()
    group.FractionGroupNumber, group.NumberOfFractionsPlanned = number, fractions
    group.NumberOfBeams, group.NumberOfBrachyApplicationSetups = len(metersets), 0
    group.ReferencedBeamSequence = []
    for beam, meterset in metersets.items():
        reference = Dataset()
        if meterset is not None:
            reference.BeamMeterset = format_number_as_ds(float(meterset))
        reference.ReferencedBeamNumber = beam
        group.ReferencedBeamSequence.append(reference)
    return group


def _setup(spec: SetupSpec) -> Dataset:
    setup = Dataset()
    setup.PatientPosition, setup.PatientSetupNumber = spec.position, spec.number
    if spec.motion is not None:
        motion = Dataset()
        motion.RespiratoryMotionCompensationTechnique, motion.RespiratorySignalSource = spec.motion
        setup.MotionSynchronizationSequence = [motion]
    return setup


def _beam(spec: BeamSpec) -> Dataset:
    beam = Dataset()
    beam.TreatmentMachineName, beam.PrimaryDosimeterUnit = spec.machine, spec.unit
    beam.BeamNumber, beam.BeamName, beam.BeamType = spec.number, spec.name, "STATIC"
    beam.RadiationType = "PROTON" if spec.ion == "1H" else "ION"
    if spec.ion != "1H":
        beam.RadiationMassNumber, beam.RadiationAtomicNumber = PARTICLES[spec.ion]
        beam.RadiationChargeState = PARTICLES[spec.ion][1]
    beam.TreatmentDeliveryType = spec.delivery
    beam.NumberOfWedges = beam.NumberOfCompensators = beam.NumberOfBoli = beam.NumberOfBlocks = 0
    beam.ScanMode, beam.VirtualSourceAxisDistances = spec.scan_mode, list(spec.vsad_mm)
    if spec.snout is not None:
        snout = Dataset()
        snout.SnoutID = spec.snout
        beam.SnoutSequence = [snout]
    beam.NumberOfRangeShifters = 0 if spec.range_shifter is None else 1
    if spec.range_shifter is not None:
        shifter = Dataset()
        shifter.RangeShifterNumber, shifter.RangeShifterID = spec.range_shifter[:2]
        shifter.RangeShifterType = "BINARY"
        beam.RangeShifterSequence = [shifter]
    beam.NumberOfLateralSpreadingDevices = 2 if spec.magnets else 0
    if spec.magnets:
        beam.LateralSpreadingDeviceSequence = [_magnet(1, "MagnetX"), _magnet(2, "MagnetY")]
    beam.NumberOfRangeModulators = 0 if spec.ripple_filter is None else 1
    if spec.ripple_filter is not None:
        modulator = Dataset()
        modulator.RangeModulatorNumber, modulator.RangeModulatorID = 1, spec.ripple_filter
        modulator.RangeModulatorType = "FIXED"
        beam.RangeModulatorSequence = [modulator]
    beam.PatientSupportType = "TABLE"
    if spec.patient_setup is not None:
        beam.ReferencedPatientSetupNumber = spec.patient_setup
    if spec.delivery == "SETUP":
        beam.ScanMode = "NONE"
        points = [_setup_point(0), _setup_point(1)]
    else:
        points = _points(spec)
        beam.FinalCumulativeMetersetWeight = points[-1].CumulativeMetersetWeight
    beam.NumberOfControlPoints = len(points)
    beam.IonControlPointSequence = points
    return beam


def _magnet(number: int, name: str) -> Dataset:
    device = Dataset()
    device.LateralSpreadingDeviceNumber, device.LateralSpreadingDeviceID = number, name
    device.LateralSpreadingDeviceType = "MAGNET"
    return device


def _setup_point(index: int) -> Dataset:
    point = Dataset()
    point.ControlPointIndex, point.KVP, point.CumulativeMetersetWeight = index, 120, None
    return point


def _points(spec: BeamSpec) -> list[Dataset]:
    scale = 1.0 if spec.final_weight is None else spec.final_weight / spec.meterset
    points: list[Dataset] = []
    cumulative = 0.0
    for layer in spec.layers:
        weights = [float(np.float32(w * scale)) for _, _, w in layer.spots]
        points.append(_point(spec, layer, len(points), cumulative, weights))
        cumulative += sum(weights)
        if not spec.one_point_per_layer:
            points.append(_point(spec, layer, len(points), cumulative, [0.0] * len(weights)))
    if spec.one_point_per_layer:
        layer = spec.layers[-1]
        points.append(_point(spec, layer, len(points), cumulative, [0.0] * len(layer.spots)))
    _set_geometry(spec, points[0])
    return points


def _point(spec: BeamSpec, layer: LayerSpec, index: int, cumulative: float, weights: list[float]) -> Dataset:
    point = Dataset()
    point.ControlPointIndex, point.NominalBeamEnergy = index, format_number_as_ds(layer.energy_mev_u)
    point.CumulativeMetersetWeight = format_number_as_ds(cumulative)
    setting = layer.range_shifter or ("IN" if index == 0 and spec.range_shifter is not None else None)
    if setting is not None and spec.range_shifter is not None and any(weights):
        item = Dataset()
        item.RangeShifterSetting = setting
        if spec.range_shifter[2] is not None:
            item.RangeShifterWaterEquivalentThickness = spec.range_shifter[2]
        item.ReferencedRangeShifterNumber = spec.range_shifter[0]
        point.RangeShifterSettingsSequence = [item]
    point.ScanSpotTuneID, point.NumberOfScanSpotPositions = layer.tune, len(weights)
    point.ScanSpotPositionMap = [float(v) for x, y, _ in layer.spots for v in (x, y)]
    if layer.reordering is not None:
        point.ScanSpotReorderingAllowed = layer.reordering
    point.ScanSpotMetersetWeights = weights
    if layer.fwhm_mm is not None:
        point.ScanningSpotSize = list(layer.fwhm_mm)
    point.NumberOfPaintings = layer.paintings
    return point


def _set_geometry(spec: BeamSpec, point: Dataset) -> None:
    point.GantryAngle, point.GantryRotationDirection = spec.gantry_deg, "NONE"
    point.BeamLimitingDeviceAngle, point.BeamLimitingDeviceRotationDirection = 0, "NONE"
    point.PatientSupportAngle, point.PatientSupportRotationDirection = spec.couch_deg, "NONE"
    table = spec.table_mm or (None, None, None)
    point.TableTopVerticalPosition, point.TableTopLongitudinalPosition, point.TableTopLateralPosition = table
    point.IsocenterPosition = None if spec.isocenter_mm is None else list(spec.isocenter_mm)
    point.TableTopPitchAngle, point.TableTopPitchRotationDirection = 0.0, "NONE"
    point.TableTopRollAngle, point.TableTopRollRotationDirection = 0.0, "NONE"
    point.GantryPitchAngle, point.GantryPitchRotationDirection = None, ""
    if spec.snout_mm is not None:
        point.SnoutPosition = spec.snout_mm
