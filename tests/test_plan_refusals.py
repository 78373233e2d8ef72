"""Every rule that turns a plan file down: one deed of damage, the rule it must meet, and nothing of the plan used."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from controller.plan.dicom import parse_dicom
from controller.plan.load import load_plan
from controller.plan.rules import (
    MALFORMED_RULES,
    PLAN_RULES,
    UNSUPPORTED_RULES,
    MalformedPlan,
    UnsupportedPlan,
)
from tests.make_plan import BeamSpec, SetupSpec, make_plan, plan_bytes
from tests.mutations import RASTER

Deed = Callable[[Dataset], object]


def beam(plan: Dataset) -> Dataset:
    found: Dataset = plan.IonBeamSequence[0]
    return found


def point(plan: Dataset, index: int = 0) -> Dataset:
    found: Dataset = beam(plan).IonControlPointSequence[index]
    return found


def group(plan: Dataset) -> Dataset:
    found: Dataset = plan.FractionGroupSequence[0]
    return found


def set_raw(owner: Dataset, keyword: str, value: bytes, vr: str) -> None:
    """Put bytes into a file that pydicom would not write by itself."""
    tag = Tag(keyword)
    owner._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def nested(plan: Dataset, depth: int) -> None:
    inner = Dataset()
    inner.RangeShifterSetting = "IN"
    for _ in range(depth):
        outer = Dataset()
        outer.RangeShifterSettingsSequence = [inner]
        inner = outer
    point(plan).RangeShifterSettingsSequence = [inner]


def change(plan: Dataset, keyword: str, value: object, index: int = 2) -> None:
    setattr(point(plan, index), keyword, value)


def top(plan: Dataset) -> Dataset:
    return plan


def reference(plan: Dataset) -> Dataset:
    found: Dataset = group(plan).ReferencedBeamSequence[0]
    return found


def setup(plan: Dataset) -> Dataset:
    found: Dataset = plan.PatientSetupSequence[0]
    return found


def setting(plan: Dataset) -> Dataset:
    found: Dataset = point(plan).RangeShifterSettingsSequence[0]
    return found


def on(where: Callable[[Dataset], Dataset], keyword: str, value: object) -> Deed:
    """Set a value there."""
    return lambda plan: setattr(where(plan), keyword, value)


def without(where: Callable[[Dataset], Dataset], keyword: str) -> Deed:
    """Delete an attribute there."""
    return lambda plan: delattr(where(plan), keyword)


def raw(where: Callable[[Dataset], Dataset], keyword: str, value: bytes, vr: str) -> Deed:
    """Put bytes there that pydicom would not write by itself."""
    return lambda plan: set_raw(where(plan), keyword, value, vr)


def refer_twice(plan: Dataset) -> None:
    group(plan).NumberOfBeams = 2
    group(plan).ReferencedBeamSequence.append(reference(plan))


def leap(plan: Dataset) -> None:
    beam(plan).ScanMode, beam(plan).ModulatedScanModeType = "MODULATED_SPEC", "LEAPING"


def motion(technique: str, source: str = "BELT") -> list[Dataset]:
    return device(RespiratoryMotionCompensationTechnique=technique, RespiratorySignalSource=source)


NAN, INF = float("nan"), float("inf")


NAN_WEIGHT, INF_POSITION = floats(*[1.0] * 8, NAN), floats(*[1.0] * 17, INF)


def drop(owner: Dataset, keyword: str) -> None:
    delattr(owner, keyword)


def scale_weights(plan: Dataset, factor: float) -> None:
    weights = point(plan).ScanSpotMetersetWeights
    point(plan).ScanSpotMetersetWeights = [weights[0] * factor, *weights[1:]]


def device(**values: object) -> list[Dataset]:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


MAP, WEIGHTS, JAWS = "ScanSpotPositionMap", "ScanSpotMetersetWeights", device(NumberOfLeafJawPairs=1)

MALFORMED: list[tuple[str, str, Deed]] = [
    ("a photon plan", "NOT_AN_ION_PLAN", on(top, "SOPClassUID", UID("1.2.840.10008.5.1.4.1.1.481.5"))),
    ("no SOP instance", "MISSING_VALUE", without(top, "SOPInstanceUID")),
    ("a study that is no UID", "BAD_VALUE", raw(top, "StudyInstanceUID", b"1.2.x ", "UI")),
    ("no study", "MISSING_VALUE", without(top, "StudyInstanceUID")),
    ("an unknown approval", "BAD_VALUE", on(top, "ApprovalStatus", "MAYBE")),
    ("no beams", "MISSING_VALUE", without(top, "IonBeamSequence")),
    ("no fraction groups", "MISSING_VALUE", without(top, "FractionGroupSequence")),
    ("no gantry angle", "MISSING_VALUE", without(point, "GantryAngle")),
    ("an empty gantry angle", "MISSING_VALUE", on(point, "GantryAngle", None)),
    ("a gantry angle of 400", "BAD_VALUE", on(point, "GantryAngle", 400)),
    ("no couch angle", "MISSING_VALUE", without(point, "PatientSupportAngle")),
    ("no VSAD", "MISSING_VALUE", without(beam, "VirtualSourceAxisDistances")),
    ("one VSAD", "BAD_VALUE", on(beam, "VirtualSourceAxisDistances", [2000.0])),
    ("a VSAD of zero", "BAD_VALUE", on(beam, "VirtualSourceAxisDistances", [2000.0, 0.0])),
    ("a VSAD of NaN", "NON_FINITE_VALUE", raw(beam, "VirtualSourceAxisDistances", floats(1, NAN), "FL")),
    ("no energy", "MISSING_VALUE", without(point, "NominalBeamEnergy")),
    ("energy zero", "BAD_VALUE", on(point, "NominalBeamEnergy", 0)),
    ("energy 'nan'", "NON_FINITE_VALUE", raw(point, "NominalBeamEnergy", b"nan ", "DS")),
    ("energy 1e400", "NON_FINITE_VALUE", raw(point, "NominalBeamEnergy", b"1e400 ", "DS")),
    ("a decimal comma", "BAD_VALUE", raw(point, "NominalBeamEnergy", b"208,69", "DS")),
    ("two energies in one value", "BAD_VALUE", raw(point, "NominalBeamEnergy", b"20\\21 ", "DS")),
    ("a wrong value representation", "BAD_VALUE", raw(point, "SnoutPosition", b"\0" * 8, "FD")),
    ("a unit of neither MU nor NP", "BAD_VALUE", on(beam, "PrimaryDosimeterUnit", "GY")),
    ("no unit", "MISSING_VALUE", on(beam, "PrimaryDosimeterUnit", "")),
    ("no beam name", "MISSING_VALUE", without(beam, "BeamName")),
    ("no delivery type", "MISSING_VALUE", without(beam, "TreatmentDeliveryType")),
    ("no beam type", "MISSING_VALUE", without(beam, "BeamType")),
    ("no scan mode", "MISSING_VALUE", without(beam, "ScanMode")),
    ("MODULATED_SPEC without its type", "MISSING_VALUE", on(beam, "ScanMode", "MODULATED_SPEC")),
    ("no number of wedges", "MISSING_VALUE", without(beam, "NumberOfWedges")),
    ("no ion charge", "MISSING_VALUE", without(beam, "RadiationChargeState")),
    ("an ion lighter than its charge", "BAD_VALUE", on(beam, "RadiationMassNumber", 5)),
    ("a proton of mass 12", "BAD_VALUE", on(beam, "RadiationType", "PROTON")),
    ("no patient support", "MISSING_VALUE", without(beam, "PatientSupportType")),
    ("a rotation direction 'ccw'", "BAD_VALUE", raw(point, "GantryRotationDirection", b"ccw ", "CS")),
    ("control characters in a tune", "BAD_VALUE", raw(point, "ScanSpotTuneID", b"1\x07", "SH")),
    ("a tune of 60 kB", "LIMIT_EXCEEDED", raw(point, "ScanSpotTuneID", b"1" * 60_000, "SH")),
    ("no tune", "MISSING_VALUE", without(point, "ScanSpotTuneID")),
    ("no paintings", "MISSING_VALUE", without(point, "NumberOfPaintings")),
    ("zero paintings", "BAD_VALUE", on(point, "NumberOfPaintings", 0)),
    ("2,000 paintings of nine spots", "LIMIT_EXCEEDED", on(point, "NumberOfPaintings", 2000)),
    ("a million spots declared", "LIMIT_EXCEEDED", on(point, "NumberOfScanSpotPositions", 1_000_000)),
    ("a spot too few declared", "POSITION_MAP_LENGTH", on(point, "NumberOfScanSpotPositions", 8)),
    ("an odd position map", "POSITION_MAP_LENGTH", on(point, "ScanSpotPositionMap", [1.0] * 17)),
    ("no position map", "POSITION_MAP_LENGTH", without(point, "ScanSpotPositionMap")),
    ("a map that is no whole number of floats", "BAD_VALUE", raw(point, "ScanSpotPositionMap", b"\0" * 70, "FL")),
    ("a weight too few", "SPOT_COUNT_MISMATCH", on(point, "ScanSpotMetersetWeights", [1.0] * 8)),
    ("a weight of NaN", "NON_FINITE_VALUE", raw(point, "ScanSpotMetersetWeights", NAN_WEIGHT, "FL")),
    ("an infinite position", "NON_FINITE_VALUE", raw(point, "ScanSpotPositionMap", INF_POSITION, "FL")),
    ("a position beyond any field", "BAD_VALUE", on(point, "ScanSpotPositionMap", [1e6] * 18)),
    ("a negative weight", "NEGATIVE_WEIGHT", lambda p: scale_weights(p, -1.0)),
    ("a weight 5 % too large", "WEIGHT_SUM_MISMATCH", lambda p: scale_weights(p, 1.05)),
    ("weights in the last control point", "WEIGHT_SUM_MISMATCH", lambda p: change(p, WEIGHTS, [1.0] * 9, -1)),
    ("cumulative weights from 1 on", "CUMULATIVE_NOT_MONOTONIC", on(point, "CumulativeMetersetWeight", 1)),
    ("cumulative weights that go down", "CUMULATIVE_NOT_MONOTONIC", lambda p: change(p, "CumulativeMetersetWeight", 1)),
    ("no cumulative weight", "MISSING_VALUE", lambda p: change(p, "CumulativeMetersetWeight", None)),
    ("another final weight", "FINAL_WEIGHT_MISMATCH", on(beam, "FinalCumulativeMetersetWeight", 57.4)),
    ("a final weight of zero", "BAD_VALUE", on(beam, "FinalCumulativeMetersetWeight", 0)),
    ("a repeated control point index", "CONTROL_POINT_INDEX", lambda p: change(p, "ControlPointIndex", 1)),
    ("a control point too few", "COUNT_MISMATCH", lambda p: beam(p).IonControlPointSequence.pop()),
    ("a moved spot where the layer ends", "END_POINT_DIFFERS", lambda p: change(p, MAP, [1.0] * 18, 1)),
    ("another energy where the layer ends", "END_POINT_DIFFERS", lambda p: change(p, "NominalBeamEnergy", 251, 1)),
    ("another tune where the layer ends", "END_POINT_DIFFERS", lambda p: change(p, "ScanSpotTuneID", "2", 1)),
    ("a reordering word", "BAD_VALUE", lambda p: change(p, "ScanSpotReorderingAllowed", "PERHAPS", 0)),
    ("a spot size of minus one", "BAD_VALUE", lambda p: change(p, "ScanningSpotSize", [-1.0, 5.0], 0)),
    ("two beams of one number", "DUPLICATE_NUMBER", lambda p: p.IonBeamSequence.append(beam(p))),
    ("two groups of one number", "DUPLICATE_NUMBER", lambda p: p.FractionGroupSequence.append(group(p))),
    ("a beam referenced twice", "DUPLICATE_NUMBER", refer_twice),
    ("two set-ups of one number", "DUPLICATE_NUMBER", lambda p: p.PatientSetupSequence.append(setup(p))),
    ("another number of beams", "COUNT_MISMATCH", on(group, "NumberOfBeams", 2)),
    ("a referenced beam that is not there", "REFERENCED_BEAM_MISSING", on(reference, "ReferencedBeamNumber", 3)),
    ("a beam that no group references", "BEAM_NOT_REFERENCED", on(reference, "ReferencedBeamNumber", 3)),
    ("no meterset", "METERSET_MISSING", lambda p: drop(group(p).ReferencedBeamSequence[0], "BeamMeterset")),
    ("a meterset of zero", "METERSET_MISSING", on(reference, "BeamMeterset", 0)),
    ("a negative meterset", "BAD_VALUE", on(reference, "BeamMeterset", -5)),
    ("a set-up beam with a meterset", "SETUP_BEAM_METERSET", on(beam, "TreatmentDeliveryType", "SETUP")),
    ("a set-up that is not there", "PATIENT_SETUP_UNCLEAR", on(beam, "ReferencedPatientSetupNumber", 5)),
    ("a gating without a source", "MISSING_VALUE", on(setup, "MotionSynchronizationSequence", motion("GATING", ""))),
    ("two snouts", "COUNT_MISMATCH", lambda p: beam(p).SnoutSequence.append(beam(p).SnoutSequence[0])),
    ("a snout without an id", "MISSING_VALUE", lambda p: setattr(beam(p).SnoutSequence[0], "SnoutID", "")),
    ("a range shifter too few", "COUNT_MISMATCH", on(beam, "NumberOfRangeShifters", 1)),
    ("nesting of 30 sequences", "LIMIT_EXCEEDED", lambda p: nested(p, 30)),
    ("65 beams", "LIMIT_EXCEEDED", lambda p: p.IonBeamSequence.extend([beam(p)] * 64)),
    ("4,002 control points", "LIMIT_EXCEEDED", lambda p: beam(p).IonControlPointSequence.extend([point(p, 1)] * 3996)),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "deed"), [(r, d) for _, r, d in MALFORMED], ids=[what for what, _, _ in MALFORMED])
def test_a_plan_with_this_fault_is_malformed(rule: str, deed: Deed) -> None:
    # Read back first: pydicom writes raw bytes unjudged only into a data set that it has read.
    plan = pydicom.dcmread(io.BytesIO(plan_bytes(make_plan())))
    deed(plan)
    with pytest.raises(MalformedPlan, match=rf"test\.dcm: \[.*\b{rule}\]") as caught:
        parse_dicom("test.dcm", plan_bytes(plan), fraction_group=None)
    assert rule in [f.rule for f in caught.value.findings]
    assert caught.value.exit_status == 2
    assert len(str(caught.value)) < 2000


def shifter_plan() -> Dataset:
    return make_plan([BeamSpec(range_shifter=(0, "RS", 30.0))])


def modulator(plan: Dataset) -> Dataset:
    found: Dataset = beam(plan).RangeModulatorSequence[0]
    return found


SETTINGS: list[tuple[str, Deed]] = [
    ("no setting", without(point, "RangeShifterSettingsSequence")),
    ("a setting of another number", on(setting, "ReferencedRangeShifterNumber", 1)),
    ("a setting of HALF", on(setting, "RangeShifterSetting", "HALF")),
    ("two settings", lambda p: point(p).RangeShifterSettingsSequence.append(setting(p))),
]  # fmt: skip


@pytest.mark.parametrize("deed", [d for _, d in SETTINGS], ids=[what for what, _ in SETTINGS])
def test_a_range_shifter_without_a_clear_setting_is_malformed(deed: Deed) -> None:
    plan = shifter_plan()
    deed(plan)
    with pytest.raises(MalformedPlan, match="RANGE_SHIFTER_SETTING"):
        parse_dicom("test.dcm", plan_bytes(plan), fraction_group=None)


def test_a_beam_without_setup_reference_where_setups_differ_is_malformed() -> None:
    plan = make_plan([BeamSpec(patient_setup=None)], setups=[SetupSpec(1), SetupSpec(2, motion=("GATING", "BELT"))])
    with pytest.raises(MalformedPlan, match="PATIENT_SETUP_UNCLEAR"):
        parse_dicom("test.dcm", plan_bytes(plan), fraction_group=None)


def test_a_fault_in_a_beam_of_another_group_makes_the_file_malformed() -> None:
    plan = make_plan([BeamSpec(), BeamSpec(number=2, name="F2")], groups={1: {1: 10.0}, 2: {2: 10.0}})
    drop(plan.IonBeamSequence[1].IonControlPointSequence[0], "GantryAngle")
    with pytest.raises(MalformedPlan, match="MISSING_VALUE"):
        parse_dicom("test.dcm", plan_bytes(plan), fraction_group=1)


UNSUPPORTED: list[tuple[str, str, Deed]] = [
    ("a dynamic beam", "ARC_NOT_SUPPORTED", on(beam, "BeamType", "DYNAMIC")),
    ("a gantry that moves", "ARC_NOT_SUPPORTED", lambda p: change(p, "GantryAngle", 91)),
    ("a gantry that rotates", "ARC_NOT_SUPPORTED", lambda p: change(p, "GantryRotationDirection", "CW", 0)),
    ("a couch that turns", "ARC_NOT_SUPPORTED", lambda p: change(p, "PatientSupportAngle", 1)),
    ("a couch that moves from nowhere", "ARC_NOT_SUPPORTED", lambda p: change(p, "TableTopLateralPosition", 5)),
    ("a snout that moves", "ARC_NOT_SUPPORTED", lambda p: change(p, "SnoutPosition", 201.0)),
    ("an isocentre that moves", "ARC_NOT_SUPPORTED", lambda p: change(p, "IsocenterPosition", [0, 0, 1])),
    ("uniform scanning", "SCAN_MODE_NOT_SUPPORTED", on(beam, "ScanMode", "UNIFORM")),
    ("leaping spots", "SCAN_MODE_NOT_SUPPORTED", leap),
    ("a private scan mode", "SCAN_MODE_NOT_SUPPORTED", on(beam, "ScanMode", "LINE")),
    ("a block", "MODIFIER_NOT_SUPPORTED", on(beam, "NumberOfBlocks", 1)),
    ("a bolus", "MODIFIER_NOT_SUPPORTED", on(beam, "NumberOfBoli", 1)),
    ("a compensator without a count", "MODIFIER_NOT_SUPPORTED", on(beam, "IonRangeCompensatorSequence", JAWS)),
    ("a collimator", "MODIFIER_NOT_SUPPORTED", on(beam, "IonBeamLimitingDeviceSequence", JAWS)),
    ("photons", "RADIATION_NOT_SUPPORTED", on(beam, "RadiationType", "PHOTON")),
    ("ions with electrons left", "RADIATION_NOT_SUPPORTED", on(beam, "RadiationChargeState", 4)),
    ("an ion that changes", "RADIATION_NOT_SUPPORTED", lambda p: change(p, "RadiationMassNumber", 4)),
    ("a continuation beam", "DELIVERY_TYPE_NOT_SUPPORTED", on(beam, "TreatmentDeliveryType", "CONTINUATION")),
    ("brachytherapy", "DELIVERY_TYPE_NOT_SUPPORTED", on(group, "NumberOfBrachyApplicationSetups", 1)),
    ("tracking", "MOTION_NOT_SUPPORTED", on(setup, "MotionSynchronizationSequence", motion("TRACKING"))),
    ("a chair", "PATIENT_SUPPORT_NOT_SUPPORTED", on(beam, "PatientSupportType", "CHAIR")),
    ("a pitched gantry", "PATIENT_SUPPORT_NOT_SUPPORTED", lambda p: change(p, "GantryPitchAngle", 5.0, 0)),
    ("an eccentric table", "PATIENT_SUPPORT_NOT_SUPPORTED", lambda p: change(p, "TableTopEccentricAngle", 5, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "deed"), [(r, d) for _, r, d in UNSUPPORTED], ids=[w for w, _, _ in UNSUPPORTED])
def test_a_sound_plan_that_asks_for_this_is_refused(rule: str, deed: Deed) -> None:
    plan = make_plan()
    deed(plan)
    with pytest.raises(UnsupportedPlan, match=rf"test\.dcm: \[{rule}\]") as caught:
        parse_dicom("test.dcm", plan_bytes(plan), fraction_group=None)
    assert caught.value.exit_status == 3


def test_wheels_scatterers_and_analog_shifters_are_refused() -> None:
    plans = [make_plan([BeamSpec(ripple_filter="R")]), make_plan([BeamSpec(magnets=True)]), shifter_plan()]
    modulator(plans[0]).RangeModulatorType = "WHL_MODWEIGHTS"
    beam(plans[1]).LateralSpreadingDeviceSequence[0].LateralSpreadingDeviceType = "SCATTERER"
    beam(plans[2]).RangeShifterSequence[0].RangeShifterType = "ANALOG"
    for plan in plans:
        with pytest.raises(UnsupportedPlan, match="MODIFIER_NOT_SUPPORTED"):
            parse_dicom("test.dcm", plan_bytes(plan), fraction_group=None)


def test_fields_that_differ_in_gating_are_refused() -> None:
    beams = [BeamSpec(patient_setup=1), BeamSpec(number=2, name="F2", patient_setup=2)]
    plan = make_plan(beams, setups=[SetupSpec(1), SetupSpec(2, motion=("GATING", "BELT"))])
    with pytest.raises(UnsupportedPlan, match="MOTION_NOT_SUPPORTED"):
        parse_dicom("test.dcm", plan_bytes(plan), fraction_group=None)


BYTES: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("an empty file", "FILE_UNREADABLE", lambda _: b""),
    ("a picture", "FORMAT_UNKNOWN", lambda _: b"\x89PNG\r\n\x1a\n" + bytes(1000)),
    ("a plan without preamble", "FORMAT_UNKNOWN", lambda d: d[132:]),
    ("a deflated data set", "TRANSFER_SYNTAX", lambda d: d.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")),
    ("big endian", "TRANSFER_SYNTAX", lambda d: d.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0")),
    ("a file cut in the middle", "TRUNCATED", lambda d: d[: len(d) // 2]),
    ("a file without its last byte", "TRUNCATED", lambda d: d[:-1]),
    ("a file cut in its meta information", "TRUNCATED", lambda d: d[:150]),
    ("bytes behind the end", "TRUNCATED", lambda d: d + b"\0\0"),
    ("a second data set behind the first", "DICOM_STRUCTURE", lambda d: d + d[d.index(b"\x08\x00\x05\x00CS") :]),
    ("another meta length", "DICOM_STRUCTURE", lambda d: d[:140] + b"\x10" + d[141:]),
    ("a meta instance that is another", "BAD_VALUE", lambda d: d.replace(b"498.77.1", b"498.77.8", 1)),
    ("an unknown value representation", "DICOM_STRUCTURE", lambda d: d.replace(b"\x02\x00SH", b"\x02\x00XX")),
    ("an element out of order", "DICOM_STRUCTURE", lambda d: d.replace(b"\x0a\x30\x02\x00SH", b"\x08\x00\x02\x00SH")),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "deed"), [(r, d) for _, r, d in BYTES], ids=[what for what, _, _ in BYTES])
def test_bytes_that_are_no_dicom_plan_are_turned_down(
    rule: str, deed: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "case.dcm"
    path.write_bytes(deed(plan_bytes(make_plan())))
    with pytest.raises(MalformedPlan, match=rf"case\.dcm: \[{rule}\]"):
        load_plan(path, default_gantry_deg=0.0)


def test_every_cut_of_a_plan_is_turned_down_or_not_approved() -> None:
    data = plan_bytes(make_plan())
    for end in range(0, len(data), 7):
        with pytest.raises(MalformedPlan):
            parse_dicom("cut.dcm", data[:end], fraction_group=None)
    before_approval = data[: data.index(b"\x0e\x30\x02\x00CS")]
    assert parse_dicom("cut.dcm", before_approval, fraction_group=None).plan.approval == "NONE"


def test_a_repeated_element_is_malformed_where_pydicom_takes_the_last() -> None:
    data = plan_bytes(make_plan())
    label = data.index(b"\x0a\x30\x02\x00SH")
    length = 8 + struct.unpack_from("<H", data, label + 6)[0]
    doubled = data[: label + length] + data[label : label + length] + data[label + length :]
    with pytest.raises(MalformedPlan, match="DICOM_STRUCTURE"):
        parse_dicom("twice.dcm", doubled, fraction_group=None)


def item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def sequence(items: bytes) -> bytes:
    return struct.pack("<HH2sHI", 0x300E, 0x0010, b"SQ", 0, len(items)) + items


@pytest.mark.parametrize(
    "bomb",
    [
        sequence(item(b"") * 100_001),
        sequence(item(b"".join(struct.pack("<HH2sH", 0x11, n, b"LO", 0) for n in range(10))) * 30_001),
        sequence(item(struct.pack("<HH2sH", 8, 5, b"CS", 500) + b"\\" * 500)),
    ],
    ids=["items", "elements", "a character set of 500 names"],
)
def test_more_of_anything_than_a_plan_needs_is_turned_down(bomb: bytes) -> None:
    with pytest.raises(MalformedPlan, match="LIMIT_EXCEEDED"):
        parse_dicom("bomb.dcm", plan_bytes(make_plan()) + bomb, fraction_group=None)


def test_a_length_beyond_the_file_is_turned_down_without_reading_it() -> None:
    data = plan_bytes(make_plan()) + struct.pack("<HH2sHI", 0x300E, 0x0010, b"UN", 0, 0xFFFFFFF0)
    with pytest.raises(MalformedPlan, match="TRUNCATED"):
        parse_dicom("long.dcm", data, fraction_group=None)


def test_sequences_of_undefined_length_are_read_and_an_open_one_is_truncated() -> None:
    plan = make_plan()
    plan["IonBeamSequence"].is_undefined_length = True
    for item in plan.IonBeamSequence:
        item.is_undefined_length_sequence_item = True
    data = plan_bytes(plan)
    assert parse_dicom("open.dcm", data, fraction_group=None).plan.fields[0].spots == 27
    end = data.index(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    with pytest.raises(MalformedPlan, match=r"TRUNCATED|DICOM_STRUCTURE"):
        parse_dicom("open.dcm", data[:end], fraction_group=None)


def test_too_large_a_file_is_turned_down_without_reading_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.dcm"
    with path.open("wb") as file:
        file.truncate(300 * 1024 * 1024)  # sparse: takes no disk
    with pytest.raises(MalformedPlan, match="LIMIT_EXCEEDED"):
        load_plan(path, default_gantry_deg=0.0)


def test_what_is_no_readable_file_is_turned_down(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing.dcm", tmp_path / "pipe", Path("/dev/null"), Path("a\0b")):
        with pytest.raises(MalformedPlan, match="FILE_UNREADABLE"):
            load_plan(path, default_gantry_deg=0.0)


def test_options_that_do_not_fit_the_file_are_wrong_usage(tmp_path: Path) -> None:
    path = tmp_path / "plan.dcm"
    path.write_bytes(plan_bytes(make_plan()))
    with pytest.raises(MalformedPlan, match="WRONG_USAGE"):
        load_plan(path, gantry_deg=90.0, default_gantry_deg=0.0)
    with pytest.raises(MalformedPlan, match="WRONG_USAGE"):
        load_plan(path, couch_deg=0.0, default_gantry_deg=0.0)
    with pytest.raises(MalformedPlan, match=r"FRACTION_GROUP_UNKNOWN.*\[1\]"):
        load_plan(path, fraction_group=2, default_gantry_deg=0.0)
    path.write_bytes(RASTER)
    with pytest.raises(MalformedPlan, match="WRONG_USAGE"):
        load_plan(path, gantry_deg=float("nan"), default_gantry_deg=0.0)
    with pytest.raises(MalformedPlan, match="FRACTION_GROUP_UNKNOWN"):
        load_plan(path, fraction_group=2, default_gantry_deg=0.0)


def test_no_message_shows_more_of_a_hostile_value_than_a_line() -> None:
    plan = make_plan()
    set_raw(point(plan), "NominalBeamEnergy", b"9" * 60 + b"\x1b[", "DS")
    with pytest.raises(MalformedPlan) as caught:
        parse_dicom("test.dcm", plan_bytes(plan), fraction_group=None)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_unexpected_fault_of_the_library_is_bad_input_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("unknown value representation")

    monkeypatch.setattr("controller.plan.dicom.pydicom.dcmread", fail)
    with pytest.raises(MalformedPlan, match=r"DICOM_STRUCTURE.*NotImplementedError"):
        parse_dicom("test.dcm", plan_bytes(make_plan()), fraction_group=None)


def test_a_library_that_sees_other_elements_than_the_file_has_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    shorter = make_plan()
    drop(shorter, "RTPlanLabel")
    monkeypatch.setattr("controller.plan.dicom.pydicom.dcmread", lambda *_: shorter)
    with pytest.raises(MalformedPlan, match="two ways of parsing"):
        parse_dicom("test.dcm", plan_bytes(make_plan()), fraction_group=None)


def test_every_rule_of_reading_is_met_by_a_test_and_named_once() -> None:
    here = "".join(p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("test_plan_*.py"))
    names = [rule.name for rule in (*MALFORMED_RULES, *UNSUPPORTED_RULES, *PLAN_RULES)]
    assert len(set(names)) == len(names)
    assert [name for name in names if name not in here] == []
