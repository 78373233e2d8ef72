"""Resumed by the command: the next day, after a kill, in five parts, over a dispute; its records, report and files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from controller.compose import VirtualWorld
from controller.record.journal_reader import read_journal
from controller.record.schema import VISIT_PARTIAL
from tests.delivery_rig import EXAMPLES, fault
from tests.test_command_line import spotwise
from tests.test_resume import deliver, interrupted, scenario, summary, whole
from tests.test_treatment_record import KNOWN_FALSE

SMALL = EXAMPLES / "small_carbon.dcm"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose controller was gone at once in mid-layer; its room lived on until the beam had ended."""
    folder = tmp_path_factory.mktemp("killed")
    faults = folder / "killed.toml"
    faults.write_text('[[fault]]\nname = "process_killed"\nafter_visits = 15\n', encoding="utf-8")
    assert deliver(folder / "t", "--fault", str(faults)) == 4
    return folder / "t"


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A treatment in five parts, stopped by emergency stop and door, the third part on the day after."""
    folder = tmp_path_factory.mktemp("five")
    out = interrupted(folder, 5)
    for visits, later in ((4, "0.5"), (11, "24"), (13, "0")):
        stop = scenario(folder, fault("plant.door_closed", at=f"after_visits = {visits}", value=0))
        assert spotwise("resume", out, "--fault", stop, "--later", later)[0] == 4
    assert spotwise("resume", out)[0] == 0
    return out


def again(directory: Path, folder: Path) -> Path:
    """A copy of a treatment's directory."""
    copy = folder / "copy"
    shutil.copytree(directory, copy)
    return copy


def test_five_parts_over_two_days_add_up_to_the_plan_with_records_that_validate(
    five: Path, program: Callable[[str], str]
) -> None:
    out = five
    got = whole(out)
    assert [part["part"] for part in got["parts"]] == [1, 2, 3, 4, 5]
    begun = [datetime.fromisoformat(part["begun"]) for part in got["parts"]]
    assert timedelta(hours=24) < begun[2] - begun[1] < timedelta(hours=24, minutes=5)
    records = [pydicom.dcmread(out / name) for name in ("record.dcm", *(f"record-{n}.dcm" for n in range(2, 6)))]
    assert [f"{r.TreatmentDate}" for r in records] == [f"{day:%Y%m%d}" for day in begun]
    assert records[2].TreatmentDate > records[1].TreatmentDate
    beams = [beam for record in records for beam in record.TreatmentSessionIonBeamSequence]
    assert {beam.CurrentFractionNumber for beam in beams} == {1}
    assert sum(float(beam.DeliveredPrimaryMeterset) for beam in beams) == pytest.approx(got["mu_primary"], abs=1e-6)
    for record in records[1:]:
        (first,) = record.ReferencedTreatmentRecordSequence
        assert first.ReferencedSOPInstanceUID == records[0].SOPInstanceUID
    for number in range(1, 6):
        path = out / ("record.dcm" if number == 1 else f"record-{number}.dcm")
        said = subprocess.run([program("dciodvfy"), str(path)], capture_output=True, text=True, check=False).stderr
        wrong = [line for line in said.splitlines() if line.startswith("Error")]
        assert [line for line in wrong if not any(known in line for known in KNOWN_FALSE)] == []
    with read_journal(out / "journal.bin") as journal:
        for part in journal.parts:  # each session proves its monitors and its ways to stop anew
            assert {e["what"] for e in part.events if e["event"] == "self_test"} == {
                e["what"] for e in journal.parts[0].events if e["event"] == "self_test"
            }
        visits = journal.visits
    assert sum(part["counts_1"] for part in got["parts"]) == int(visits["counts_1"].sum())
    done = visits[(visits["flags"] & VISIT_PARTIAL) == 0]
    assert len(done) == len(np.unique(done[["field", "visit"]])) == 48  # nothing was completed twice


@pytest.mark.slow
def test_one_changed_byte_in_any_file_of_five_parts_is_found_and_the_file_named(five: Path, tmp_path: Path) -> None:
    out = again(five, tmp_path)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    assert {"run-5.json", "record-5.dcm", "truth.json", "room-state.npz", "guard-state.json"} <= {p.name for p in files}
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        status, text, err = spotwise("verify", out)
        assert (status, path.name in text + err) == (3, True), path
        path.write_bytes(content)
    assert spotwise("verify", out)[0] == 0


def test_a_killed_treatment_is_resumed_from_the_rings_and_the_same_way_each_time(killed: Path, tmp_path: Path) -> None:
    with read_journal(killed / "journal.bin") as journal:
        assert journal.parts[-1].end is None
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        out = again(killed, tmp_path / name)
        assert spotwise("resume", out)[0] == 0
        whole(out)
        written.append([(out / file).read_bytes() for file in ("journal.bin", "log.h5", "record.dcm", "record-2.dcm")])
    assert written[0] == written[1]
    assert summary(out)["parts"][1]["reconciliation"]["verdict"] == "explained"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<h2>Parts</h2>" in page
    assert "Before part 2: explained" in page


def test_a_killed_treatments_pedestal_of_a_day_may_hide_dose_and_a_physicist_decides(
    killed: Path, tmp_path: Path
) -> None:
    out = again(killed, tmp_path)
    status, _, err = spotwise("resume", out, "--later", "24")
    assert status == 3
    assert "DISPUTE between journal and hardware" in err
    assert [part["outcome"] for part in summary(out)["parts"]] == ["not closed", "refused"]
    assert sorted(path.name for path in out.glob("record*.dcm")) == ["record.dcm"]  # no session, no record
    decided = ("--accept-dispute", "--trust", "journal", "--operator", "simulated", "--reason", "no beam overnight")
    assert spotwise("resume", out, "--later", "0", *decided)[0] == 0
    assert [part["outcome"] for part in whole(out)["parts"]] == ["not closed", "refused", "completed"]
    assert sorted(path.name for path in out.glob("record*.dcm")) == ["record-2.dcm", "record.dcm"]


def test_a_guard_whose_memory_is_elsewhere_is_refused_and_it_is_said_what_to_do(killed: Path, tmp_path: Path) -> None:
    """As where a guard of one's own supervised the first part, and has ended."""
    out = again(killed, tmp_path)
    (out / "guard-state.json").rename(tmp_path / "memory.json")
    status, _, err = spotwise("resume", out)
    assert status == 3
    assert "GUARD_RETAINED" in err
    assert "start that one again, with the --state that it had" in err
    (tmp_path / "memory.json").replace(out / "guard-state.json")
    status, text, err = spotwise("resume", out)
    assert status == 0
    planned = text.split(" of ")[2].split(" MU")[0]
    assert {line.split(" MU,")[0].split(" of ")[-1] for line in err.splitlines() if " MU," in line} == {planned}
    assert "of virtual time, whose date follows from plan, site and seed" in (out / "report.html").read_text()
    whole(out)


def spoil(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Something else happened to the devices' rings than what the journal knows."""
    path = out / "room-state.npz"
    with np.load(path) as stored:
        kept = {name: stored[name] for name in stored.files}
    change(kept)
    np.savez(path, **kept)


def foreign(kept: dict[str, Any]) -> None:
    for name in ("results", "latches_1", "latches_2"):
        kept[f"ring_{name}"]["visit"] += 3


def overrun(kept: dict[str, Any]) -> None:
    kept["first"] = kept["written"] = kept["written"] + 40_000
    for name in ("results", "latches_1", "latches_2"):
        kept[f"ring_{name}"] = kept[f"ring_{name}"][:0]


def acknowledged(kept: dict[str, Any]) -> None:
    kept["acknowledged"][:] = kept["written"]


def power_up(world: VirtualWorld, _seconds: float) -> None:
    """The room was switched off and on: nothing counted meanwhile, and every device says so by its boot nonce."""
    for number in (1, 2, 3):
        world.room.plant.state[f"nonce_{number}"] += 1


def nobody_touched_them(_kept: dict[str, Any]) -> None:
    """The rings are as they were."""


DISPUTES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "foreign rows": (foreign, "the rings hold visits"),
    "ring overrun": (overrun, "the rings overran"),
    "acknowledged rows": (acknowledged, "were acknowledged by somebody"),
    "power lost": (nobody_touched_them, "electrometer_1, electrometer_2 lost power in mid-treatment"),
}


@pytest.mark.parametrize("name", DISPUTES)
def test_a_dispute_is_refused_with_its_reason_and_goes_on_by_a_physicists_decision(
    name: str, killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = DISPUTES[name]
    out = again(killed, tmp_path)
    spoil(out, change)
    if name == "power lost":
        monkeypatch.setattr(VirtualWorld, "wait_idle", power_up)
    status, _, err = spotwise("resume", out)
    assert status == 3
    assert "DISPUTE between journal and hardware, nothing is delivered" in err
    assert said in err
    before = summary(out)["mu_primary"]
    status, _, err = spotwise("resume", out, "--accept-dispute", "--operator", "simulated", "--reason", "looked at it")
    assert status == 0, err
    got = summary(out)
    assert got["outcome"] == "completed"
    assert got["parts"][-1]["reconciliation"]["verdict"] == "accepted"
    # the hardware counter counts: what it has is given, and at most once
    given = got["truth"]["per_field"][0]["particles_error_pct"]
    assert given < 0.5
    assert got["mu_primary"] > before
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "simulated let the hardware count: looked at it" in page
    assert spotwise("verify", out)[0] == 0
