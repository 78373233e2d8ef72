"""Read an RT Ion Plan from a DICOM file: whole and sound, or not at all.

The bytes are read once, hashed, walked by `dicom_structure` and only then given to pydicom; pydicom must have
seen exactly the elements of the walk. All beams of the file are read, also those of other fraction groups, so that
nothing is delivered from a file with damage anywhere in its beams.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Final, Literal

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from controller.plan.dicom_beam import Beam, BeamHead, read_beam
from controller.plan.dicom_groups import FractionGroup, choose_group, read_groups, read_heads
from controller.plan.dicom_setups import read_patient_setup
from controller.plan.dicom_structure import CHARACTER_SET, MAX_FILE_BYTES, DicomLayout, Outline, uid_text, walk
from controller.plan.dicom_values import NAME_CHARS, Node, encodings_of
from controller.plan.files import read_bytes
from controller.plan.loaded import LoadedPlan
from controller.plan.model import PatientIdentity, Plan
from controller.plan.rules import MalformedPlan, UnsupportedPlan, finding
from drivers.errors import SpotwiseError

RT_ION_PLAN: Final = "1.2.840.10008.5.1.4.1.1.481.8"
MAX_SPOTS: Final = 2_000_000
_APPROVALS: dict[str, Literal["APPROVED", "UNAPPROVED", "REJECTED", "NONE"]] = {
    "": "NONE",
    "APPROVED": "APPROVED",
    "UNAPPROVED": "UNAPPROVED",
    "REJECTED": "REJECTED",
}


def read_dicom(path: Path, *, fraction_group: int | None) -> LoadedPlan:
    """Read one fraction group of an RT Ion Plan.

    Args:
        path: the file.
        fraction_group: FractionGroupNumber; None takes the lowest, with a finding if there are several.

    Raises:
        MalformedPlan: the file is unreadable, malformed, or not an RT Ion Plan.
        UnsupportedPlan: it is sound, but asks for what this controller does not deliver.

    """
    return parse_dicom(path.name, read_bytes(path, MAX_FILE_BYTES), fraction_group=fraction_group)


def parse_dicom(name: str, data: bytes, *, fraction_group: int | None) -> LoadedPlan:
    """Read a plan from the bytes of a file; like `read_dicom`."""
    if data[128:132] != b"DICM":
        raise MalformedPlan(name, finding("FORMAT_UNKNOWN", "byte 128", "wanted DICM after a 128-byte preamble"))
    layout = walk(name, data, RT_ION_PLAN)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pydicom warns of is checked here, or does not matter
            dataset = pydicom.dcmread(io.BytesIO(data))
            _compare(name, dataset, layout)
        return _read_plan(name, data, dataset, layout, fraction_group)
    except SpotwiseError:
        raise
    except Exception as error:
        # Boundary: pydicom promises no set of exceptions for hostile input (KeyError, struct.error,
        # NotImplementedError, RecursionError, MemoryError have all been seen). Whatever it is, the file is not used.
        raise MalformedPlan(
            name, finding("DICOM_STRUCTURE", "", f"cannot be interpreted ({type(error).__name__})")
        ) from error


def _compare(name: str, dataset: Dataset, layout: DicomLayout) -> None:
    """Prove that pydicom saw the elements of the walk."""
    seen = Outline()
    pending = [(dataset, 1)]
    while pending:
        current, depth = pending.pop()
        for tag in list(current.keys()):
            element = current.get_item(tag, keep_deferred=True)
            seen.elements += 1
            seen.tags += int(tag) * depth
            if _is_sequence(element, int(tag)):
                items = current[tag].value or []
                seen.items += len(items)
                pending.extend((item, depth + 2) for item in items)
            elif tag != CHARACTER_SET and isinstance(element, RawDataElement):
                seen.value_bytes += element.length
    if seen != layout.outline:
        raise MalformedPlan(name, finding("DICOM_STRUCTURE", "", "two ways of parsing the file disagree"))


def _is_sequence(element: object, tag: int) -> bool:
    vr = getattr(element, "VR", None)
    if vr is None:
        return dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"
    return bool(vr == "SQ")


def _read_plan(name: str, data: bytes, dataset: Dataset, layout: DicomLayout, wanted: int | None) -> LoadedPlan:
    top = Node(dataset, name, "", encodings_of(dataset.get("SpecificCharacterSet")))
    sop_class = top.uid("SOPClassUID")
    if sop_class != RT_ION_PLAN:
        raise top.fail("NOT_AN_ION_PLAN", f"not an RT Ion Plan: SOPClassUID wanted {RT_ION_PLAN}, got {sop_class}")
    sop_instance = top.uid("SOPInstanceUID")
    stored = uid_text(layout.meta.get(0x00020003, b""))
    if stored != sop_instance:
        raise top.fail("BAD_VALUE", f"MediaStorageSOPInstanceUID is {stored or 'empty'}, SOPInstanceUID {sop_instance}")
    heads = read_heads(top)
    groups = read_groups(top, heads)
    group = choose_group(top, groups, wanted)
    beams = _read_beams(heads, groups, group)
    fields = tuple(beam.field for beam in beams)
    setup = read_patient_setup(top, [heads[field.number] for field in fields])
    approval = top.code("ApprovalStatus")
    if approval not in _APPROVALS:
        raise top.fail("BAD_VALUE", f"ApprovalStatus: wanted APPROVED, UNAPPROVED or REJECTED, got {approval!r}")
    setup_beams = tuple(head.name for head in heads.values() if head.delivery == "SETUP")
    plan = Plan(
        format="dicom",
        label=top.text("RTPlanLabel"),
        sop_instance_uid=sop_instance,
        approval=_APPROVALS[approval],
        fraction_group=group.number,
        fraction_groups=tuple(sorted(groups)),
        fractions_planned=group.fractions,
        gating=setup.motion,
        patient_position=setup.position,
        fields=fields,
        setup_beams=setup_beams,
        shown=tuple(pair for beam in beams for pair in beam.shown),
        file_sha256=hashlib.sha256(data).hexdigest(),
    )
    findings = [f for beam in beams for f in beam.findings]
    findings.extend(setup.findings)
    if wanted is None and len(groups) > 1:
        message = f"groups {', '.join(map(str, plan.fraction_groups))}: {group.number} is used"
        findings.append(finding("FRACTION_GROUP_DEFAULTED", f"fraction group {group.number}", message))
    return LoadedPlan(plan, _identity(top), tuple(findings))


def _read_beams(heads: dict[int, BeamHead], groups: dict[int, FractionGroup], chosen: FractionGroup) -> list[Beam]:
    """Read all treatment beams in the order of the file; return those of the chosen group."""
    beams: list[Beam] = []
    spots = 0
    for head in heads.values():
        metersets = [g.metersets[head.number] for _, g in sorted(groups.items()) if g.metersets.get(head.number)]
        is_chosen = head.number in chosen.metersets
        if head.delivery != "TREATMENT":
            if is_chosen and head.delivery != "SETUP":
                message = f"TreatmentDeliveryType is {head.delivery}"
                raise UnsupportedPlan(head.node.file, finding("DELIVERY_TYPE_NOT_SUPPORTED", head.node.where, message))
            continue
        meterset = chosen.metersets[head.number] if is_chosen else metersets[0]
        assert meterset  # read_groups has refused treatment beams without
        try:
            beam = read_beam(head, meterset)
        except UnsupportedPlan:
            if is_chosen:
                raise
            continue  # Sound, belongs to another group, and is not delivered.
        spots += beam.field.spots
        if spots > MAX_SPOTS:
            raise head.node.fail("LIMIT_EXCEEDED", f"more than {MAX_SPOTS} spots in the plan")
        if is_chosen:
            beams.append(beam)
    if not beams:
        where = chosen.where
        raise MalformedPlan(
            next(iter(heads.values())).node.file, finding("MISSING_VALUE", where, "the group has no treatment beam")
        )
    return beams


def _identity(top: Node) -> PatientIdentity:
    return PatientIdentity(
        name=top.text("PatientName", chars=NAME_CHARS),
        id=top.text("PatientID"),
        birth_date=top.text("PatientBirthDate"),
        sex=top.code("PatientSex"),
        study_instance_uid=top.uid("StudyInstanceUID"),
        study_date=top.text("StudyDate"),
        study_time=top.text("StudyTime"),
        study_id=top.text("StudyID"),
        accession_number=top.text("AccessionNumber"),
        referring_physician=top.text("ReferringPhysicianName", chars=NAME_CHARS),
        frame_of_reference_uid=top.uid("FrameOfReferenceUID", required=False),
    )
