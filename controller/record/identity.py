"""The patient's identity, kept apart from everything else: the small DICOM file `identity.dcm`.

It is the only file of a treatment directory, besides the treatment records, that names a person. Remove it and the
journal, log, summary and report still stand, without a name. It is a DICOM file of the Raw Data class that holds
nothing but the patient and study modules and the frame of reference.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ImplicitVRLittleEndian, RawDataStorage

from controller.plan.model import PatientIdentity
from drivers.errors import BadInput

IMPLEMENTATION_CLASS_UID = UID("2.25.329800735698586629295641978511506172918")
IMPLEMENTATION_VERSION = "SPOTWISE_0_1"

KEYWORDS = {
    "name": "PatientName",
    "id": "PatientID",
    "birth_date": "PatientBirthDate",
    "sex": "PatientSex",
    "study_instance_uid": "StudyInstanceUID",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "study_id": "StudyID",
    "accession_number": "AccessionNumber",
    "referring_physician": "ReferringPhysicianName",
    "frame_of_reference_uid": "FrameOfReferenceUID",
}

NOBODY = PatientIdentity(
    name="",
    id="",
    birth_date="",
    sex="",
    study_instance_uid="",
    study_date="",
    study_time="",
    study_id="",
    accession_number="",
    referring_physician="",
    frame_of_reference_uid="",
)
"""No identity is known: records get empty values (type 2) and a study UID of their own."""


def hash_uid(*words: str | bytes) -> str:
    """Return a UID (2.25, PS3.5 B.2) that is a function of `words` alone."""
    digest = hashlib.sha256(b"\0".join(w.encode() if isinstance(w, str) else w for w in words)).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def set_identity(dataset: Dataset, patient: PatientIdentity) -> None:
    """Put the patient and study attributes into a data set; empty ones too (all but the UIDs are type 2)."""
    for name, keyword in KEYWORDS.items():
        value = getattr(patient, name)
        if value or not keyword.endswith("UID"):
            setattr(dataset, keyword, value)


def encoded(dataset: Dataset) -> bytes:
    """Return the data set as a DICOM file: Implicit VR Little Endian, with meta information."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    buffer = BytesIO()
    file = FileDataset(buffer, dataset, preamble=b"\0" * 128, file_meta=meta)
    file.save_as(buffer, enforce_file_format=True, implicit_vr=True, little_endian=True)
    return buffer.getvalue()


def save(dataset: Dataset, path: Path) -> None:
    """Write a data set as a DICOM file. Raises `BadInput` where the disk refuses."""
    try:
        path.write_bytes(encoded(dataset))
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from error


def write_identity(path: Path, patient: PatientIdentity) -> None:
    """Write `identity.dcm`; readable by its owner alone."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = RawDataStorage
    dataset.SOPInstanceUID = hash_uid("identity", *(getattr(patient, name) for name in KEYWORDS))
    dataset.Modality = "OT"
    dataset.ContentDescription = "Spotwise: identity of the patient of this treatment directory"
    set_identity(dataset, patient)
    save(dataset, path)
    path.chmod(0o600)


def read_identity(path: Path) -> PatientIdentity:
    """Read `identity.dcm`; `NOBODY` where there is none. Raises `BadInput` where it is no such file."""
    if not path.exists():
        return NOBODY
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it makes of a damaged file is judged here, not printed
            dataset = pydicom.dcmread(path)
            dataset.decode()
        if dataset.SOPClassUID != RawDataStorage or dataset.get("Modality") != "OT":
            raise BadInput(f"{path}: not an identity file written by Spotwise: SOP class {dataset.SOPClassUID}")
        values = {name: str(dataset.get(keyword, "") or "") for name, keyword in KEYWORDS.items()}
    except BadInput:
        raise
    except Exception as error:
        # a boundary: of damaged bytes the DICOM library raises whatever it happens to run into
        raise BadInput(f"{path}: cannot be read as a DICOM file: {error!r}") from error
    for name in ("study_instance_uid", "frame_of_reference_uid"):
        if values[name] and not re.fullmatch(r"[0-9.]{1,64}", values[name]):
            raise BadInput(f"{path}: {KEYWORDS[name]} {values[name]!r} is no UID")
    return PatientIdentity(**values)
