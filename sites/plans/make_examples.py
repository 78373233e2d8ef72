"""Writes the example plans as DICOM RT Ion Plans: `python -m sites.plans.make_examples [FOLDER]`.

The same bytes every time: UIDs are hashes of the names (2.25.x, PS3.5 annex B.2), dates are fixed. The patient
is a tank of water.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, RTIonPlanStorage

from sites.plans.phantom import CARBON, PROTON, Ion, Lattice, Sphere, SpotLayer, fill

DATE, TIME = "20260105", "120000"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan says of the machine it was made for."""

    name: str
    ion: Ion
    vsad_mm: tuple[float, float]
    snout_mm: float
    tune_id: str


@dataclass(frozen=True, slots=True)
class Example:
    """One plan: its fields are (name, gantry angle in degrees, target)."""

    label: str
    machine: Machine
    fractions: int
    fields: tuple[tuple[str, float, Sphere | Lattice], ...]
    motion: tuple[str, str] | None = None
    """Respiratory motion compensation and its signal source: the plan is gated."""


REF_C = Machine("REF-C", CARBON, (9000.0, 8500.0), 450.0, "2")
REF_P = Machine("REF-P", PROTON, (2200.0, 1900.0), 300.0, "4.0")

EXAMPLES = {
    "demo_carbon_2field": Example(
        "DEMO_C_2F",
        REF_C,
        16,
        (
            ("A_LATERAL", 90.0, Sphere(105.0, 20.0, 5, 2.0, 5.5e5, 0.2)),
            ("B_VERTICAL", 0.0, Sphere(95.0, 20.0, 5, 2.0, 5.5e5, 0.2)),
        ),
    ),
    "demo_proton_1field": Example(
        "DEMO_P_1F", REF_P, 30, (("A_LATERAL", 90.0, Sphere(135.0, 15.0, 4, 3.5, 2.5e7, 0.5)),)
    ),
    "small_carbon": Example(
        "SMALL_C_2F",
        REF_C,
        1,
        (
            ("A_LATERAL", 90.0, Sphere(120.0, 8.0, 2, 3.0, 2.0e5, 0.2, most_spots=12)),
            ("B_VERTICAL", 0.0, Sphere(95.0, 8.0, 2, 3.0, 2.0e5, 0.2, most_spots=12)),
        ),
    ),
    "small_proton": Example(
        "SMALL_P_1F", REF_P, 1, (("A_LATERAL", 90.0, Sphere(125.0, 9.0, 2, 4.5, 1.0e7, 0.5, most_spots=10)),)
    ),
    "lattice_carbon": Example(
        "LATTICE_C_2F",
        REF_C,
        1,
        (
            ("A_LATERAL", 90.0, Lattice((130.0, 100.0), 2, 30.0, 2.0e7)),
            ("B_VERTICAL", 0.0, Lattice((115.0,), 2, 30.0, 2.0e7)),
        ),
    ),
    "gated_carbon": Example(
        "GATED_C_1F",
        REF_C,
        1,
        (("A_OBLIQUE", 35.0, Sphere(110.0, 8.0, 2, 3.0, 2.0e5, 0.2, most_spots=12)),),
        motion=("GATING", "EXTERNAL_MARKER"),
    ),
}


def uid(*words: str) -> UID:
    """A UID made of a hash of words."""
    digest = hashlib.sha256("/".join(("spotwise", "example", *words)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def build(example: Example) -> Dataset:
    """The plan as a data set, ready to be written."""
    plan = _head(example)
    numbered = list(enumerate(example.fields, start=1))
    beams = [_beam(example.machine, number, name, gantry, target) for number, (name, gantry, target) in numbered]
    plan.FractionGroupSequence = Sequence([_fraction_group(example, beams)])
    setup = Dataset()
    setup.PatientSetupNumber = 1
    setup.PatientPosition = "HFS"
    setup.SetupTechnique = "ISOCENTRIC"
    if example.motion is not None:
        motion = Dataset()
        motion.RespiratoryMotionCompensationTechnique, motion.RespiratorySignalSource = example.motion
        setup.MotionSynchronizationSequence = Sequence([motion])
    plan.PatientSetupSequence = Sequence([setup])
    plan.IonBeamSequence = Sequence(beams)
    plan.ApprovalStatus = "APPROVED"
    plan.ReviewDate, plan.ReviewTime, plan.ReviewerName = DATE, TIME, "Example^Physicist"
    return plan


def write(folder: Path) -> list[Path]:
    """Write all examples into a folder; returns their paths."""
    paths = []
    for name, example in EXAMPLES.items():
        paths.append(folder / f"{name}.dcm")
        build(example).save_as(paths[-1], enforce_file_format=True)
    return paths


def _head(example: Example) -> Dataset:
    plan = Dataset()
    plan.file_meta = FileMetaDataset()
    plan.file_meta.MediaStorageSOPClassUID = RTIonPlanStorage
    plan.file_meta.MediaStorageSOPInstanceUID = uid(example.label, "instance")
    plan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plan.file_meta.ImplementationClassUID = uid("implementation")
    plan.file_meta.ImplementationVersionName = "SPOTWISE_EXAMPLE"
    plan.SpecificCharacterSet = "ISO_IR 192"
    plan.InstanceCreationDate, plan.InstanceCreationTime = DATE, TIME
    plan.SOPClassUID = RTIonPlanStorage
    plan.SOPInstanceUID = uid(example.label, "instance")
    plan.StudyDate, plan.StudyTime = DATE, TIME
    plan.AccessionNumber = ""
    plan.Modality = "RTPLAN"
    plan.Manufacturer = "Spotwise"
    plan.ManufacturerModelName = "Example plans"
    plan.ReferringPhysicianName = ""
    plan.OperatorsName = ""
    plan.PatientName, plan.PatientID = "Phantom^Water", "PHANTOM-WATER"
    plan.PatientBirthDate, plan.PatientSex = "", "O"
    plan.StudyInstanceUID, plan.SeriesInstanceUID = uid(example.label, "study"), uid(example.label, "series")
    plan.StudyID, plan.SeriesNumber = "1", 1
    plan.FrameOfReferenceUID = uid(example.label, "frame of reference")
    plan.PositionReferenceIndicator = ""
    plan.RTPlanLabel = example.label
    plan.RTPlanDate, plan.RTPlanTime = DATE, TIME
    plan.RTPlanGeometry = "TREATMENT_DEVICE"
    plan.PlanIntent = "RESEARCH"
    return plan


def _fraction_group(example: Example, beams: list[Dataset]) -> Dataset:
    group = Dataset()
    group.FractionGroupNumber = 1
    group.NumberOfFractionsPlanned = example.fractions
    group.NumberOfBeams = len(beams)
    group.NumberOfBrachyApplicationSetups = 0
    references = []
    for beam in beams:
        reference = Dataset()
        reference.BeamMeterset = beam.FinalCumulativeMetersetWeight
        reference.ReferencedBeamNumber = beam.BeamNumber
        references.append(reference)
    group.ReferencedBeamSequence = Sequence(references)
    return group


def _beam(machine: Machine, number: int, name: str, gantry_deg: float, target: Sphere | Lattice) -> Dataset:
    layers = fill(machine.ion, target)
    beam = Dataset()
    beam.Manufacturer = "Spotwise"
    beam.TreatmentMachineName = machine.name
    beam.PrimaryDosimeterUnit = "MU"
    beam.BeamNumber, beam.BeamName = number, name
    beam.BeamType = "STATIC"
    beam.TreatmentDeliveryType = "TREATMENT"
    if machine.ion is PROTON:
        beam.RadiationType = "PROTON"
    else:
        beam.RadiationType = "ION"
        beam.RadiationMassNumber = machine.ion.nucleons
        beam.RadiationAtomicNumber = beam.RadiationChargeState = machine.ion.charge
    beam.NumberOfWedges = beam.NumberOfCompensators = beam.NumberOfBoli = beam.NumberOfBlocks = 0
    beam.ScanMode = "MODULATED"
    beam.VirtualSourceAxisDistances = list(machine.vsad_mm)
    snout = Dataset()
    snout.SnoutID = "S1"
    beam.SnoutSequence = Sequence([snout])
    beam.NumberOfRangeShifters = beam.NumberOfLateralSpreadingDevices = beam.NumberOfRangeModulators = 0
    beam.PatientSupportType = "TABLE"
    beam.ReferencedPatientSetupNumber = 1
    points: list[Dataset] = []
    cumulative = 0.0
    for layer in layers:
        weights = np.array(layer.mu, dtype=np.float32)  # as the file will have them: sums must agree with these
        points.append(_control_point(machine, layer, len(points), cumulative, weights))
        cumulative += float(weights.astype(np.float64).sum())
        points.append(_control_point(machine, layer, len(points), cumulative, np.zeros_like(weights)))
    _geometry(points[0], gantry_deg, machine.snout_mm)
    beam.FinalCumulativeMetersetWeight = points[-1].CumulativeMetersetWeight
    beam.NumberOfControlPoints = len(points)
    beam.IonControlPointSequence = Sequence(points)
    return beam


def _control_point(
    machine: Machine,
    layer: SpotLayer,
    index: int,
    cumulative: float,
    weights: np.ndarray[tuple[int], np.dtype[np.float32]],
) -> Dataset:
    point = Dataset()
    point.ControlPointIndex = index
    point.NominalBeamEnergy = f"{layer.energy_mev_u:.10g}"
    point.CumulativeMetersetWeight = f"{cumulative:.10g}"
    point.ScanSpotTuneID = machine.tune_id
    point.NumberOfScanSpotPositions = len(layer.xy_mm)
    point.ScanSpotPositionMap = [value for at in layer.xy_mm for value in at]
    point.ScanSpotMetersetWeights = weights.tolist()
    point.ScanningSpotSize = list(layer.fwhm_mm)
    point.NumberOfPaintings = 1
    return point


def _geometry(point: Dataset, gantry_deg: float, snout_mm: float) -> None:
    """Write what does not change within a field: into the first control point only."""
    point.GantryAngle, point.GantryRotationDirection = f"{gantry_deg:g}", "NONE"
    point.BeamLimitingDeviceAngle, point.BeamLimitingDeviceRotationDirection = "0", "NONE"
    point.PatientSupportAngle, point.PatientSupportRotationDirection = "0", "NONE"
    point.TableTopVerticalPosition = point.TableTopLongitudinalPosition = point.TableTopLateralPosition = None
    point.IsocenterPosition = ["0", "0", "0"]
    point.TableTopPitchAngle, point.TableTopPitchRotationDirection = 0.0, "NONE"
    point.TableTopRollAngle, point.TableTopRollRotationDirection = 0.0, "NONE"
    point.GantryPitchAngle, point.GantryPitchRotationDirection = 0.0, "NONE"
    point.SnoutPosition = snout_mm


if __name__ == "__main__":
    for path in write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent):
        print(path)
