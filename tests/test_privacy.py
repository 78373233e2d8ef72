"""Who the patient is, is in DICOM files and the ledger's patient table, and nowhere else that a treatment leaves."""

from __future__ import annotations

import io
import json
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pydicom
import pytest
from pydicom import config

from controller.record.frames_format import BlockType, read_blocks
from controller.record.identity import read_identity
from controller.record.pseudonym import SIMULATED_KEY
from tests.brokers import mosquitto, reader, until
from tests.delivery_rig import EXAMPLES, fault, run_delivery
from tests.make_plan import BeamSpec, LayerSpec, grid, make_plan, write_plan
from tests.real_rooms import delivery, make_room
from tests.real_rooms import spotwise as room_command
from tests.test_command_line import spotwise
from tests.test_ledger_in_use import VIRTUAL

PLANTED = {
    "PatientName": "QXPLANTED^NAME",
    "PatientID": "QXPLANTED-ID-77",
    "PatientBirthDate": "19610203",
    "PatientBirthTime": "041733.170419",
    "OtherPatientIDs": "QXPLANTED-OTHER",
    "OtherPatientNames": "QXPLANTED^MAIDEN",
    "PatientAddress": "QXPLANTED STREET 9",
    "PatientComments": "QXPLANTED COMMENT",
    "ReferringPhysicianName": "QXPLANTED^DOCTOR",
    "PhysiciansOfRecord": "QXPLANTED^SECOND",
    "OperatorsName": "QXPLANTED^PLANNER",
    "InstitutionName": "QXPLANTED HOSPITAL",
    "AccessionNumber": "QXPLANTEDACC",
    "StudyID": "QXPLANTEDST",
    "StudyDescription": "QXPLANTED STUDY",
    "StudyDate": "20190407",
    "StudyTime": "063911.170423",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.471100471100.1",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.471100471100.2",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.471100471100.3",
}
SECRETS = (
    "QXPLANTED",
    "19610203",
    "041733.170419",
    "20190407",
    "063911.170423",
    "471100471100",
    "1961-02-03",
    "2019-04-07",
)


def planted_plan(path: Path, **changed: str) -> Path:
    plan = make_plan([BeamSpec(layers=[LayerSpec(240.0, grid(4, 20.0))])], fractions=5)
    for keyword, value in {**PLANTED, **changed}.items():
        setattr(plan, keyword, value)
    return write_plan(path, plan)


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Everything in a file, unpacked as far as it can be."""
    data = path.read_bytes()
    yield path.name, data
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            found: list[bytes] = [repr(dict(file.attrs)).encode()]
            for name in ("headers", "events", "ends"):
                found += [text.encode() for text in file[name].asstr()[:]]
            for table in ("rows", "visits"):
                found += [repr(dict(dataset.attrs)).encode() for dataset in file[table].values()]
            yield f"{path.name} unpacked", b"\n".join(found)
    elif path.suffix == ".npz":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield f"{path.name}/{name}", name.encode() + archive.read(name)
    elif path.suffix == ".frames":
        for block in read_blocks(path):
            yield f"{path.name} {block.kind.name}", block.payload
            if block.kind is BlockType.FIELD:
                at = block.payload.find(b"\x78")
                while at >= 0:
                    try:
                        yield f"{path.name} unpacked", zlib.decompress(block.payload[at:])
                        break
                    except zlib.error:
                        at = block.payload.find(b"\x78", at + 1)


def tables(path: Path) -> str:
    """Everything in a ledger but its patient table."""
    with sqlite3.connect(path) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert "patient" in names
        return repr([db.execute(f"SELECT * FROM {name}").fetchall() for name in names if name != "patient"])


def silent_about(what: str, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    for secret in SECRETS:
        assert secret.encode() not in data, f"{what} holds {secret!r}"


def test_a_whole_treatment_names_nobody_outside_dicom_and_the_patient_table(tmp_path: Path) -> None:
    plan = planted_plan(tmp_path / "plan.dcm")
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(fault("plant.emergency_stop", at="after_visits = 2", value=1))
    out, ledger = tmp_path / "t", tmp_path / "ledger.sqlite"
    own = tmp_path / "own"
    said = [
        spotwise("check", plan, "--site", "carbon-fixed"),
        spotwise("deliver", plan, *VIRTUAL, "--ledger", ledger, "--out", out, "--fault", scenario, "--record-frames"),
        spotwise("deliver", plan, *VIRTUAL, "--ledger", ledger, "--out", tmp_path / "no"),  # refused: one is open
        spotwise("resume", out),
        spotwise("report", out),
        spotwise("verify", out),
        spotwise("verify", out, "--json"),
        spotwise("ledger", ledger, "--csv", tmp_path / "tables", "--dicom", tmp_path / "dicom"),
        spotwise("ledger", ledger, "--json"),
        spotwise("export", out, "--csv", tmp_path / "export"),
        spotwise("deliver", plan, *VIRTUAL, "--out", own, "--json"),
    ]
    assert [status for status, _, _ in said] == [0, 4, 3, 0, 0, 0, 0, 0, 0, 0, 0], said
    for _, text, err in said:
        silent_about("stdout", text)
        silent_about("stderr", err)
    named, looked = 0, 0
    for path in sorted(tmp_path.rglob("*")):
        silent_about("a file's name", str(path.relative_to(tmp_path)))
        if path.is_dir():
            continue
        if path.suffix == ".dcm":
            named += b"QXPLANTED" in path.read_bytes()
            continue
        if path.name.startswith("ledger.sqlite"):
            silent_about(str(path), tables(path))
            continue
        looked += 1
        for name, content in contents(path):
            silent_about(name, content)
    assert named >= 5  # the plan, two identities, the records: the search does find what is there
    assert looked >= 20


def test_telemetry_and_guard_in_virtual_time_name_nobody(tmp_path: Path) -> None:
    delivery = run_delivery(planted_plan(tmp_path / "plan.dcm"), "carbon-fixed", tmp_path / "t")
    assert len(delivery.sink.messages) > 20
    silent_about("telemetry", json.dumps(delivery.sink.messages))
    silent_about("events", json.dumps(delivery.events))
    silent_about("summary", json.dumps(delivery.summary))


@pytest.mark.real_clock
@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_real_processes_and_a_real_broker_name_nobody(
    tmp_path: Path, program: Callable[[str], str], free_port: Callable[[], int]
) -> None:
    """Guard, simulators and telemetry are processes and a broker of their own here, with files of their own."""
    room = make_room(tmp_path, free_port, (r"(?m)^enabled = false", "enabled = true"), guard=True)
    planted_plan(room.plan)
    out = tmp_path / "t"
    port = int(room.site.telemetry.url.rsplit(":", 1)[1])
    async with mosquitto(program("mosquitto"), tmp_path, port), reader(port) as seen:
        done = await room_command(room, *delivery(room, out)[2:])
        await until("the farewell", lambda: seen.of("availability")[-1:])
    assert done.status == 0, done
    silent_about("stdout", done.out)
    silent_about("stderr", done.err)
    assert len(seen.messages) > 10
    silent_about("the broker's messages", json.dumps(seen.messages))
    names = {path.name for path in out.iterdir()}
    assert names >= {"guard-events.jsonl", "guard-site.json", "simulators.log", "simulators-state.npz", "truth.npz"}
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".dcm" and path.name != "ledger.sqlite":
            for name, content in contents(path):
                silent_about(name, content)
    silent_about("ledger.sqlite", tables(out / "ledger.sqlite"))
    assert spotwise("verify", out)[0] == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"PatientBirthDate": "QXPLANTED-02"},
        {"StudyDate": "QXPLANTED", "StudyTime": "QXPLANTED"},
        {"StudyInstanceUID": "1.2.QXPLANTED"},
        {"FrameOfReferenceUID": "QXPLANTED"},
        {"PatientID": "QXPLANTED" * 20},
        {"PatientName": "QXPLANTED^" * 20},
    ],
    ids="-".join,
)
def test_odd_identities_are_not_printed_either(odd: dict[str, str], tmp_path: Path) -> None:
    modes = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    try:
        plan = planted_plan(tmp_path / "plan.dcm", **odd)
    finally:
        config.settings.reading_validation_mode, config.settings.writing_validation_mode = modes
    for arguments in (["check", plan, "--site", "carbon-fixed"], ["check", plan, "--site", "carbon-fixed", "--json"]):
        _, text, err = spotwise(*arguments)
        silent_about("stdout", text)
        silent_about("stderr", err)


def test_a_pseudonym_cannot_be_worked_out_from_name_and_birth_date(tmp_path: Path) -> None:
    delivery = run_delivery(EXAMPLES / "small_carbon.dcm", "carbon-fixed", tmp_path / "t")
    patient = read_identity(tmp_path / "t" / "identity.dcm")
    assert delivery.run.journal is not None
    one, other = patient.pseudonym(b"k" * 32), patient.pseudonym(b"l" * 32)
    assert one != other
    assert len({one, other, patient.pseudonym(SIMULATED_KEY)}) == 3
    assert pydicom.dcmread(tmp_path / "t" / "record.dcm").PatientID == patient.id
