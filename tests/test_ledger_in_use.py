"""The ledger around deliveries by the command: fractions in order, nothing twice, refusals with their reasons."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from controller.ledger.course import CourseLedger
from controller.ledger.use import ledger_path
from controller.record.journal_reader import read_journal
from controller.record.pseudonym import SIMULATED_KEY, pseudonym_key
from drivers.errors import BadInput, Refused
from sites.loader import load_site, parse_site
from sites.schema import Site
from tests.delivery_rig import fault
from tests.make_plan import BeamSpec, LayerSpec, grid, make_plan, write_plan
from tests.test_command_line import ROOT, one_object, spotwise

VIRTUAL = ["--site", "carbon-fixed", "--clock", "virtual"]


def small(path: Path, fractions: int = 5, **identity: str) -> Path:
    """One layer of four spots: a delivery takes a second."""
    plan = make_plan([BeamSpec(layers=[LayerSpec(240.0, grid(4, 20.0))])], fractions=fractions)
    for keyword, value in identity.items():
        setattr(plan, keyword, value)
    return write_plan(path, plan)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two fractions of five of one plan, delivered into one ledger: folder, plan, ledger."""
    folder = tmp_path_factory.mktemp("course")
    plan, ledger = small(folder / "plan.dcm"), folder / "ledger.sqlite"
    for number in (1, 2):
        status, _, err = spotwise("deliver", plan, *VIRTUAL, "--ledger", ledger, "--out", folder / f"f{number}")
        assert status == 0, err
    return folder, plan, ledger


def courses(ledger: Path) -> list[dict[str, Any]]:
    status, text, _ = spotwise("ledger", ledger, "--json")
    assert status == 0
    found: list[dict[str, Any]] = one_object(text)["courses"]
    return found


def test_two_fractions_of_one_plan_and_seed_are_two_treatments(course: tuple[Path, Path, Path]) -> None:
    folder, _, ledger = course
    [only] = courses(ledger)
    assert [(f["fraction"], f["outcome"], f["parts"]) for f in only["fractions"]] == [
        (1, "completed", 1),
        (2, "completed", 1),
    ]
    assert len({f["treatment"] for f in only["fractions"]}) == 2
    planned = only["beams"][0]["meterset_planned"]
    assert only["beams"][0]["meterset_delivered"] == pytest.approx(2 * planned, rel=0.01)
    for number in (1, 2):
        with read_journal(folder / f"f{number}" / "journal.bin") as journal:
            assert journal.header["fraction"] == number
            assert "ledger" not in json.dumps({k: v for k, v in journal.header.items() if k != "site"})
        assert spotwise("verify", folder / f"f{number}")[0] == 0


@pytest.mark.parametrize(
    ("fraction", "reason"),
    [(2, "fraction 2 was given already; due is fraction 3"), (5, "is not due yet; due is fraction 3")],
)
def test_a_fraction_out_of_turn_is_3_and_leaves_nothing(
    course: tuple[Path, Path, Path], tmp_path: Path, fraction: int, reason: str
) -> None:
    _, plan, ledger = course
    before = ledger.read_bytes()
    out = tmp_path / "t"
    status, text, err = spotwise(
        "deliver", plan, *VIRTUAL, "--ledger", ledger, "--fraction", fraction, "--out", out, "--json"
    )
    assert (status, one_object(text)["outcome"]) == (3, "refused")
    assert reason in err
    assert not out.exists()
    assert ledger.read_bytes() == before


def test_one_fraction_more_than_the_course_has_is_3(tmp_path: Path) -> None:
    plan, ledger = small(tmp_path / "plan.dcm", fractions=1), tmp_path / "ledger.sqlite"
    assert spotwise("deliver", plan, *VIRTUAL, "--ledger", ledger, "--out", tmp_path / "a")[0] == 0
    status, _, err = spotwise("deliver", plan, *VIRTUAL, "--ledger", ledger, "--out", tmp_path / "b")
    assert status == 3
    assert "all 1 fractions were given; there is no fraction 2" in err
    status, _, err = spotwise("deliver", plan, *VIRTUAL, "--fraction", 2, "--out", tmp_path / "c")
    assert status == 3
    assert "not due yet" in err
    assert not (tmp_path / "c").exists()


def test_another_patients_plan_under_the_same_label_is_3(course: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, _, ledger = course
    other = small(tmp_path / "other.dcm", PatientID="T-2", SOPInstanceUID="1.2.826.0.1.3680043.8.498.77.99")
    status, _, err = spotwise("deliver", other, *VIRTUAL, "--ledger", ledger, "--out", tmp_path / "t")
    assert status == 3
    assert "is this the right file for the patient in the room?" in err
    assert "T-2" not in err


def test_an_interrupted_fraction_bars_the_next_until_it_is_resumed(tmp_path: Path) -> None:
    plan, ledger, out = small(tmp_path / "plan.dcm"), tmp_path / "ledger.sqlite", tmp_path / "first"
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(fault("plant.emergency_stop", at="after_visits = 2", value=1))
    deliver = ["deliver", plan, *VIRTUAL, "--ledger", ledger, "--out"]
    assert spotwise(*deliver, out, "--fault", scenario)[0] == 4
    assert courses(ledger)[0]["fractions"][0]["outcome"] == "interrupted"
    status, _, err = spotwise(*deliver, tmp_path / "second")
    assert status == 3
    assert f"spotwise resume {out}" in err
    status, _, err = spotwise("resume", out)
    assert status == 0, err
    [only] = courses(ledger)
    assert (only["fractions"][0]["outcome"], only["fractions"][0]["parts"]) == ("completed", 2)
    planned = only["beams"][0]["meterset_planned"]
    assert only["beams"][0]["meterset_delivered"] == pytest.approx(planned, rel=0.02)
    with read_journal(out / "journal.bin") as journal:
        assert [part.header["fraction"] for part in journal.parts] == [1, 1]
    before = ledger.read_bytes()
    assert spotwise("report", out)[0] == 0
    assert spotwise("resume", out)[0] == 0  # nothing left: reported, and booked as it is
    assert ledger.read_bytes() == before
    assert spotwise(*deliver, tmp_path / "second")[0] == 0


def test_a_fraction_closed_by_name_is_not_resumed(tmp_path: Path) -> None:
    plan, ledger, out = small(tmp_path / "plan.dcm"), tmp_path / "ledger.sqlite", tmp_path / "first"
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(fault("plant.emergency_stop", at="after_visits = 2", value=1))
    spotwise("deliver", plan, *VIRTUAL, "--ledger", ledger, "--out", out, "--fault", scenario)
    treatment = courses(ledger)[0]["fractions"][0]["treatment"]
    for more in ([], ["--operator", "dr. grey"]):
        assert spotwise("ledger", ledger, "--close", treatment, *more)[0] == 3
    status, text, _ = spotwise(
        "ledger", ledger, "--close", treatment, "--operator", "dr. grey", "--reason", "does not come back"
    )
    assert status == 0
    assert "closed by dr. grey: does not come back" in text
    status, _, err = spotwise("resume", out)
    assert status == 3
    assert "was closed for good by dr. grey: does not come back" in err
    assert courses(ledger)[0]["beams"][0]["meterset_delivered"] > 0


def test_what_is_refused_before_anything_moved_stays_due(tmp_path: Path) -> None:
    site = tmp_path / "other.toml"
    text = (ROOT / "sites" / "carbon-fixed.toml").read_text()
    site.write_text(re.sub(r"(?m)^pressure_hpa = .*$", "pressure_hpa = 700.0", text))
    plan, ledger = small(tmp_path / "plan.dcm"), tmp_path / "ledger.sqlite"
    options = ["deliver", plan, "--site", site, "--clock", "virtual", "--ledger", ledger, "--out"]
    assert spotwise(*options, tmp_path / "a")[0] == 3
    assert courses(ledger) == []
    assert spotwise("report", tmp_path / "a")[0] == 0
    assert courses(ledger) == []
    assert spotwise("deliver", plan, *VIRTUAL, "--ledger", ledger, "--out", tmp_path / "b")[0] == 0
    assert [f["fraction"] for f in courses(ledger)[0]["fractions"]] == [1]


def test_without_a_word_the_ledger_is_in_the_directory_and_moves_with_it(tmp_path: Path) -> None:
    plan = small(tmp_path / "plan.dcm")
    assert spotwise("deliver", plan, *VIRTUAL, "--out", tmp_path / "t")[0] == 0
    (tmp_path / "t").rename(tmp_path / "moved")
    assert spotwise("report", tmp_path / "moved")[2] == ""
    status, _, err = spotwise("ledger", tmp_path / "moved" / "ledger.sqlite", "--dicom", tmp_path / "copies")
    assert status == 0, err
    assert (tmp_path / "copies" / "course-1" / "fraction-1" / "record.dcm").exists()


def test_what_is_taken_out_names_nobody_but_in_dicom(course: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, _, ledger = course
    status, text, err = spotwise("ledger", ledger, "--csv", tmp_path / "csv", "--dicom", tmp_path / "dicom")
    assert status == 0, err
    with (tmp_path / "csv" / "spots.csv").open() as file:
        spots = list(csv.DictReader(file))
    assert len(spots) == 4
    with CourseLedger(ledger, make=False) as book:
        assert [float(s["meterset"]) for s in spots] == [s["meterset"] for s in book.spots(spots[0]["pseudonym"])]
    manifest = json.loads((tmp_path / "dicom" / "manifest.json").read_text())
    assert [r["fraction"] for r in manifest["records"]] == [1, 2]
    for record in manifest["records"]:
        content = (tmp_path / "dicom" / record["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == record["sha256"]
        assert content == (folder / f"f{record['fraction']}" / "record.dcm").read_bytes()
    told = text + err + json.dumps(manifest) + "".join(p.read_text() for p in (tmp_path / "csv").iterdir())
    for secret in ("PHANTOM", "T-1", "19700101"):
        assert secret not in told


def test_a_record_that_is_gone_or_changed_is_named(course: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, plan, _ = course
    ledger, out = tmp_path / "ledger.sqlite", tmp_path / "t"
    assert spotwise("deliver", plan, *VIRTUAL, "--ledger", ledger, "--out", out)[0] == 0
    (out / "record.dcm").write_bytes((folder / "f2" / "record.dcm").read_bytes())
    status, _, err = spotwise("ledger", ledger, "--dicom", tmp_path / "a")
    assert status == 3
    assert "record.dcm: changed since it was made" in err
    out.rename(tmp_path / "elsewhere")
    status, _, err = spotwise("ledger", ledger, "--dicom", tmp_path / "b")
    assert status == 3
    assert "no directory of treatment" in err


def test_no_ledger_is_2(tmp_path: Path) -> None:
    assert spotwise("ledger", tmp_path / "none.sqlite")[0] == 2
    assert not (tmp_path / "none.sqlite").exists()
    (tmp_path / "text").write_text("nothing of the kind " * 100)
    assert spotwise("ledger", tmp_path / "text", "--json")[0] == 2


def room(folder: Path, *, real: bool, record: str) -> Site:
    text = (ROOT / "sites" / "carbon-fixed.toml").read_text()
    if real:
        text = text.replace('kind = "simulated"', 'kind = "real"')
        text = re.sub(r"(?m)^key_hex = .*$", 'key_file = "permits.key"', text)
        text = re.sub(r"(?m)^time_out_ms = .*$", "time_out_ms = 10.0", text)
    return parse_site(f"{text}\n[record]\n{record}\n".encode(), str(folder / "site.toml"))


def test_real_and_simulated_runs_never_meet_in_a_ledger(tmp_path: Path) -> None:
    own = tmp_path / "room.sqlite"
    simulated, real = (room(tmp_path, real=kind, record=f'ledger_file = "{own}"') for kind in (False, True))
    assert ledger_path(simulated, tmp_path / "t", None) == tmp_path / "t" / "ledger.sqlite"
    with pytest.raises(Refused, match="takes runs alone in which every device is real; simulated here: accelerator"):
        ledger_path(simulated, tmp_path / "t", own)
    assert ledger_path(real, tmp_path / "t", None) == own
    with pytest.raises(Refused, match="go into its own ledger"):
        ledger_path(real, tmp_path / "t", tmp_path / "other.sqlite")
    with pytest.raises(Refused, match=r"no record\.ledger_file"):
        ledger_path(room(tmp_path, real=True, record=""), tmp_path / "t", None)


def test_a_ledger_of_real_runs_takes_no_simulated_one_by_whatever_name(
    course: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, plan, ledger = course
    import sqlite3  # noqa: PLC0415

    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(ledger.read_bytes())
    for column, value, reason in (
        ("simulated", 0, "ledger of real devices alone"),
        ("key_check", "x", "under another key"),
    ):
        with sqlite3.connect(copy) as db:
            db.execute(f"UPDATE about SET {column} = ?", (value,))
        status, _, err = spotwise("deliver", plan, *VIRTUAL, "--ledger", copy, "--out", tmp_path / column)
        assert status == 3
        assert reason in err
        with sqlite3.connect(copy) as db:
            db.execute("UPDATE about SET simulated = 1")


def test_a_rooms_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "pseudonym.key"
    site = room(tmp_path, real=True, record=f'pseudonym_key_file = "{path}"')
    key = pseudonym_key(site)
    assert len(key) == 32
    assert pseudonym_key(site) == key != SIMULATED_KEY
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(Refused, match="others can read it"):
        pseudonym_key(site)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(BadInput, match="5 bytes"):
        pseudonym_key(site)
    with pytest.raises(Refused, match=r"no record\.pseudonym_key_file"):
        pseudonym_key(room(tmp_path, real=True, record=""))
    assert pseudonym_key(load_site("carbon-fixed")) == SIMULATED_KEY
