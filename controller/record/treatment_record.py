"""Writes the DICOM RT Ion Beams Treatment Record: what was delivered, as measured and as read back.

Everything comes from the journal; the names from `PatientIdentity`. One file per part, and per dosimeter unit
and treatment machine within it (a record has one of each): `record.dcm`, then `record-2.dcm` and so on, in
that order. Which number goes where, and every choice that the standard leaves open, is in docs/record.md. The
tables of the standard that this follows are PS3.3 A.50.3, C.8.8.21 and C.8.8.26.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import RTIonBeamsTreatmentRecordStorage, RTIonPlanStorage

from controller.plan.model import PatientIdentity
from controller.record.account import FieldAccount, account, utc
from controller.record.identity import hash_uid, save, set_identity
from controller.record.journal_reader import Journal, Part
from controller.record.record_interlocks import describe, interlock_items, trips_by_field
from controller.record.record_points import control_points, decimal
from controller.record.setup_readback import Setup, setups


def write_records(journal: Journal, patient: PatientIdentity, directory: Path) -> list[Path]:
    """Write all records of a treatment into `directory`; returns their paths in order. Raises `BadInput`."""
    paths = []
    for number, record in enumerate(build_records(journal, patient), start=1):
        path = directory / record_name(number)
        save(record, path)
        paths.append(path)
    return paths


def record_name(number: int) -> str:
    """File name of the n-th record."""
    return "record.dcm" if number == 1 else f"record-{number}.dcm"


def build_records(journal: Journal, patient: PatientIdentity) -> list[Dataset]:
    """All records of a treatment as data sets."""
    records: list[Dataset] = []
    before: list[FieldAccount] = []
    first: Part | None = None
    for index, part in enumerate(journal.parts):
        if was_refused(part):
            continue
        first = first or part
        ran = setups(part)
        fields = account([part], programs_of=journal.parts[: index + 1])
        so_far = account(journal.parts[: index + 1])
        # A part that ended before any field was set up is recorded with the field it was about to deliver.
        shown = [f for f in fields if f.started or f.index in ran] or [
            next((f for f in fields if not so_far[f.index].complete), fields[0])
        ]
        for unit, machine in dict.fromkeys((f.plan["unit"], _machine(part, f)) for f in shown):
            group = [f for f in shown if (f.plan["unit"], _machine(part, f)) == (unit, machine)]
            record = _record(journal, part, patient, (unit, machine))
            record.InstanceNumber = len(records) + 1
            trips = trips_by_field(part)
            record.TreatmentSessionIonBeamSequence = DicomSequence(
                [
                    _beam(part, f, before[f.index] if before else None, so_far[f.index], ran.get(f.index), first)
                    for f in group
                ]
            )
            for field, beam in zip(group, record.TreatmentSessionIonBeamSequence, strict=True):
                happened = trips.get(field.index, [])
                if field is shown[0]:
                    happened = [*trips.get(-1, []), *happened]
                if happened:
                    beam.InterlockSequence = DicomSequence(interlock_items(part, happened))
                    beam.TreatmentTerminationDescription = "; ".join(map(describe, happened))[:1024]
            if records and part is not first:
                record.ReferencedTreatmentRecordSequence = DicomSequence([_reference(records[0])])
            records.append(record)
        before = so_far
    return records


def was_refused(part: Part) -> bool:
    """Nothing was set up and nothing moved: there was no session that a record could be of."""
    refused = (part.end or {}).get("outcome") == "refused"
    return refused and not setups(part) and not part.visits["counts_1"].any()


def _machine(part: Part, field: FieldAccount) -> str:
    return str(field.plan["machine_name"] or part.header["site"]["trip98_machine"].get(field.plan["ion"], ""))


def _reference(record: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = record.SOPClassUID
    item.ReferencedSOPInstanceUID = record.SOPInstanceUID
    return item


def _record(journal: Journal, part: Part, patient: PatientIdentity, kind: tuple[str, str]) -> Dataset:
    header, unit, machine = part.header, kind[0], kind[1]
    plan = header["plan"]
    begun = utc(header, part.records[0].t_ns)
    ended = utc(header, part.records[-1].t_ns)
    root = journal.payload(journal.parts[0].records[0])
    record = Dataset()
    record.SpecificCharacterSet = "ISO_IR 192"
    record.SOPClassUID = RTIonBeamsTreatmentRecordStorage
    record.SOPInstanceUID = hash_uid(
        "record", root, journal.payload(part.records[0]), part.visits.tobytes(), unit, machine
    )
    record.InstanceCreationDate, record.InstanceCreationTime = _date(ended), _time(ended)
    record.TimezoneOffsetFromUTC = "+0000"
    set_identity(record, patient)
    if "StudyInstanceUID" not in record:
        record.StudyInstanceUID = hash_uid("study", root)
    if "FrameOfReferenceUID" in record:
        del record.FrameOfReferenceUID  # the record's IOD has no frame of reference
    record.Modality = "RTRECORD"
    record.SeriesInstanceUID = hash_uid("series", root)
    record.SeriesNumber = 1
    record.OperatorsName = str(header.get("operator", ""))[:64]
    record.Manufacturer = "Spotwise (research software)"
    record.ManufacturerModelName = "Spotwise"
    record.SoftwareVersions = str(header.get("version", ""))[:64]
    record.TreatmentDate, record.TreatmentTime = _date(begun), _time(begun)
    record.ReferencedRTPlanSequence = DicomSequence([])
    if plan["sop_instance_uid"]:
        reference = Dataset()
        reference.ReferencedSOPClassUID = RTIonPlanStorage
        reference.ReferencedSOPInstanceUID = plan["sop_instance_uid"]
        record.ReferencedRTPlanSequence = DicomSequence([reference])
    device = Dataset()
    device.TreatmentMachineName = machine
    device.Manufacturer = ""
    device.InstitutionName = ""
    device.ManufacturerModelName = str(header["site"]["title"])[:64]
    device.DeviceSerialNumber = ""
    record.TreatmentMachineSequence = DicomSequence([device])
    record.ReferencedFractionGroupNumber = plan["fraction_group"]
    record.NumberOfFractionsPlanned = plan["fractions_planned"]
    record.PrimaryDosimeterUnit = unit
    return record


def _beam(
    part: Part,
    field: FieldAccount,
    before: FieldAccount | None,
    so_far: FieldAccount,
    setup: Setup | None,
    first_part: Part,
) -> Dataset:
    plan, site = field.plan, part.header["site"]
    beam = Dataset()
    beam.ReferencedBeamNumber = plan["number"]
    beam.BeamName = plan["name"] or f"Beam {plan['number']}"
    beam.BeamType = "STATIC"
    _radiation(beam, plan["ion"])
    beam.ScanMode = plan["scan_mode"]
    if plan["scan_mode"] == "MODULATED_SPEC":
        beam.ModulatedScanModeType = "STATIONARY"
    beam.NumberOfWedges = beam.NumberOfCompensators = beam.NumberOfBoli = beam.NumberOfBlocks = 0
    beam.PatientSupportType = "TABLE"
    beam.CurrentFractionNumber = part.header.get("fraction")
    beam.TreatmentDeliveryType = delivery_type(part, continues=part is not first_part)
    beam.TreatmentTerminationStatus = termination(part, so_far)
    beam.TreatmentVerificationStatus = "VERIFIED" if setup is not None and setup.verified else "NOT_VERIFIED"
    beam.SpecifiedPrimaryMeterset = decimal(plan["meterset"])
    beam.DeliveredPrimaryMeterset = decimal(sum(float(layer.meterset_1.sum()) for layer in field.layers))
    beam.DeliveredTreatmentTime = decimal(sum(layer.beam_on_ns for layer in field.layers) / 1e9)
    shifters = _devices(beam, plan, site, setup)
    beam.NumberOfControlPoints = plan["control_points"]
    points = control_points(part, field, before, setup)
    if points:
        first = points[0]
        if shifters:
            first.RangeShifterSettingsSequence = DicomSequence(shifters)
        if plan["lateral_spreaders"]:
            first.LateralSpreadingDeviceSettingsSequence = DicomSequence(_spreader_settings(plan))
    beam.IonControlPointDeliverySequence = DicomSequence(points)
    return beam


def _radiation(beam: Dataset, ion: str) -> None:
    if ion == "1H":
        beam.RadiationType = "PROTON"
        return
    beam.RadiationType = "ION"
    beam.RadiationMassNumber = int("".join(c for c in ion if c.isdigit()))
    charge = {"H": 1, "He": 2, "C": 6, "O": 8}["".join(c for c in ion if c.isalpha())]
    beam.RadiationAtomicNumber = charge
    beam.RadiationChargeState = charge


def delivery_type(part: Part, *, continues: bool) -> str:
    """VERIFICATION (a QA run) where any device was simulated, else TREATMENT or, after another part, CONTINUATION."""
    kinds = [device.get("kind") for device in part.header["site"]["devices"].values() if isinstance(device, dict)]
    reported = [event.get("simulated") for event in part.events if event["event"] == "device"]
    if (
        part.header.get("simulated") is not False
        or any(k != "real" for k in kinds)
        or any(r is not False for r in reported)
    ):
        return "VERIFICATION"
    return "CONTINUATION" if continues else "TREATMENT"


def termination(part: Part, so_far: FieldAccount) -> str:
    """NORMAL: the field is complete. Else who ended the part: OPERATOR, or MACHINE (a trip; also a crash)."""
    if so_far.complete:
        return "NORMAL"
    first: str | None = None
    for event in part.events:
        name = event.get("name") if event["event"] == "command" else None
        if name == "resume":
            first = None
        elif first is None and (event["event"] == "trip" or name in {"pause", "abort"}):
            # The first cause counts: an operator may abort after a trip, and an abort makes conditions trip.
            first = "MACHINE" if event["event"] == "trip" else "OPERATOR"
    return first or "MACHINE"


def _devices(beam: Dataset, plan: dict[str, Any], site: dict[str, Any], setup: Setup | None) -> list[Dataset]:
    """Echo the devices in the beam with the identities that were read back; returns the range shifters' settings."""
    machine = site["treatment_machines"].get(plan["machine_name"] or site["trip98_machine"].get(plan["ion"], ""), {})
    shifters = list({s["number"]: s for layer in plan["layers"] for s in layer["range_shifters"]}.values())
    beam.NumberOfRangeShifters = len(shifters)
    beam.NumberOfLateralSpreadingDevices = len(plan["lateral_spreaders"])
    beam.NumberOfRangeModulators = 1 if plan["ripple_filter"] else 0
    if plan["snout_id"]:
        item = Dataset()
        item.SnoutID = _read_back(machine.get("snouts", ()), setup, "snout_code")
        beam.RecordedSnoutSequence = DicomSequence([item])
    settings = []
    if shifters:
        items = []
        for shifter in shifters:
            found = _read_back(machine.get("range_shifters", ()), setup, "range_shifter_code")
            item = Dataset()
            item.ReferencedRangeShifterNumber = shifter["number"]
            item.RangeShifterID = found
            items.append(item)
            setting = Dataset()
            setting.ReferencedRangeShifterNumber = shifter["number"]
            setting.RangeShifterSetting = "IN" if found == shifter["id"] else "OUT"
            settings.append(setting)
        beam.RecordedRangeShifterSequence = DicomSequence(items)
    if plan["lateral_spreaders"]:
        items = []
        for number, name in plan["lateral_spreaders"]:
            item = Dataset()
            item.ReferencedLateralSpreadingDeviceNumber = number
            item.LateralSpreadingDeviceID = name
            items.append(item)
        beam.RecordedLateralSpreadingDeviceSequence = DicomSequence(items)
    if plan["ripple_filter"]:
        item = Dataset()
        item.ReferencedRangeModulatorNumber = 1
        item.RangeModulatorID = _read_back(machine.get("ripple_filters", ()), setup, "ripple_filter_code")
        item.RangeModulatorType = "FIXED"
        beam.RecordedRangeModulatorSequence = DicomSequence([item])
    return settings


def _spreader_settings(plan: dict[str, Any]) -> list[Dataset]:
    items = []
    for number, _ in plan["lateral_spreaders"]:
        item = Dataset()
        item.ReferencedLateralSpreadingDeviceNumber = number
        item.LateralSpreadingDeviceSetting = "IN"
        items.append(item)
    return items


def _read_back(known: Sequence[dict[str, Any]], setup: Setup | None, quantity: str) -> str:
    """Name of the device whose coded identity was read back; says so where there was none."""
    code = None if setup is None else setup.value("nozzle", quantity)
    if code is None:
        return "NOT READ BACK"
    return next(
        (str(k["id"])[:16] for k in known if k["code"] == round(code)), "NONE" if code == 0 else f"CODE {code:.0f}"
    )


def _date(moment: datetime) -> str:
    return moment.strftime("%Y%m%d")


def _time(moment: datetime) -> str:
    return moment.strftime("%H%M%S.%f")
