"""The course ledger: a fraction is not given twice, no course is exceeded, and every spot can be looked up."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from controller.ledger.course import SPOT_DTYPE, Candidate, CourseLedger, Entry, Part
from controller.plan.load import load_plan
from controller.plan.model import PatientIdentity, Plan
from controller.record.pseudonym import SIMULATED_KEY
from drivers.errors import BadInput, Refused
from tests.delivery_rig import EXAMPLES

LOADED = load_plan(EXAMPLES / "small_carbon.dcm", default_gantry_deg=90.0)
PLAN = dataclasses.replace(LOADED.plan, fractions_planned=5)
PATIENT = LOADED.patient
OTHER = dataclasses.replace(PATIENT, id="ANOTHER-77", name="Another^Person")
WHO = PATIENT.pseudonym(SIMULATED_KEY)


def enter(
    ledger: CourseLedger,
    number: int,
    fraction: int | None = None,
    *,
    plan: Plan = PLAN,
    patient: PatientIdentity = PATIENT,
    labels_unique: bool = True,
) -> Entry:
    return ledger.admit(
        Candidate(plan, patient, SIMULATED_KEY, True, fraction, labels_unique),
        treatment=f"t{number}",
        directory=f"treatment-{number}",
        begun="2026-11-22T18:00:00Z",
    )


def whole(share: float = 1.0, plan: Plan = PLAN, number: int = 1, outcome: str = "completed") -> Part:
    rows = [
        (f, k, s, 1e5 * share, m * share, 1000, 1100)
        for f, field in enumerate(plan.fields)
        for k, layer in enumerate(field.layers)
        for s, m in enumerate(layer.meterset)
        if m > 0
    ]
    return Part(number, "simulated", outcome, np.array(rows, SPOT_DTYPE))


def give(ledger: CourseLedger, number: int, plan: Plan = PLAN) -> Entry:
    entry = enter(ledger, number, plan=plan)
    ledger.book(entry.treatment, "completed", [whole(plan=plan)], "00")
    return entry


@pytest.fixture
def ledger(tmp_path: Path) -> CourseLedger:
    return CourseLedger(tmp_path / "ledger.sqlite")


def test_fractions_follow_each_other_to_the_last_and_no_further(ledger: CourseLedger) -> None:
    assert [give(ledger, k).fraction for k in range(1, 6)] == [1, 2, 3, 4, 5]
    with pytest.raises(Refused, match="all 5 fractions were given; there is no fraction 6"):
        enter(ledger, 6)
    for beam, field in zip(ledger.beams(), PLAN.fields, strict=True):
        assert beam["meterset_delivered"] == pytest.approx(5 * field.meterset, rel=1e-4)
        assert beam["fractions"] == 5


def test_the_same_fraction_is_not_given_again(ledger: CourseLedger) -> None:
    give(ledger, 1)
    with pytest.raises(Refused, match="fraction 1 was given already; due is fraction 2"):
        enter(ledger, 2, fraction=1)
    with pytest.raises(Refused, match="fraction 4 is not due yet; due is fraction 2"):
        enter(ledger, 2, fraction=4)
    assert enter(ledger, 2, fraction=2).fraction == 2


@pytest.mark.parametrize("outcome", ["under way", "interrupted"])
def test_what_was_begun_is_finished_first(ledger: CourseLedger, outcome: str) -> None:
    entry = enter(ledger, 1)
    if outcome == "interrupted":
        ledger.book(entry.treatment, outcome, [whole(0.4, outcome=outcome)], "00")
    with pytest.raises(Refused, match=f"fraction 1 was begun and not completed .{outcome}.*resume treatment-1"):
        enter(ledger, 2)
    second = [whole(0.4, outcome="interrupted"), whole(0.6, number=2)]
    ledger.book(entry.treatment, "completed", second, "00")
    assert ledger.beams()[0]["meterset_delivered"] == pytest.approx(PLAN.fields[0].meterset, rel=1e-4)
    assert enter(ledger, 2).fraction == 2


def test_an_open_fraction_is_closed_by_name_and_reason_alone(ledger: CourseLedger) -> None:
    entry = enter(ledger, 1)
    ledger.book(entry.treatment, "interrupted", [whole(0.4, outcome="interrupted")], "00")
    with pytest.raises(Refused, match="named person and a reason"):
        ledger.close_fraction(entry.treatment, "dr. grey", " ")
    ledger.close_fraction(entry.treatment, "dr. grey", "patient does not come back")
    assert enter(ledger, 2).fraction == 2
    assert ledger.fractions()[0]["closed_by"] == "dr. grey"
    with pytest.raises(Refused, match="not an open fraction"):
        ledger.close_fraction(entry.treatment, "dr. grey", "again")


def test_booking_the_same_journal_again_changes_nothing(ledger: CourseLedger) -> None:
    entry = give(ledger, 1)
    before = (ledger.beams(), ledger.fractions(), ledger.spots(WHO))
    ledger.book(entry.treatment, "completed", [whole()], "00")
    assert (ledger.beams(), ledger.fractions(), ledger.spots(WHO)) == before


def test_a_treatment_that_was_never_entered_is_not_booked(ledger: CourseLedger) -> None:
    with pytest.raises(Refused, match="never entered"):
        ledger.book("strange", "completed", [whole()], "00")
    assert ledger.fractions() == []


def test_refused_before_beam_leaves_the_fraction_due(ledger: CourseLedger) -> None:
    entry = enter(ledger, 1)
    ledger.withdraw(entry.treatment)
    assert enter(ledger, 2).fraction == 1


def test_a_fraction_with_dose_cannot_be_withdrawn(ledger: CourseLedger) -> None:
    entry = give(ledger, 1)
    ledger.withdraw(entry.treatment)
    assert [f["fraction"] for f in ledger.fractions()] == [1]


def test_another_patients_plan_under_the_same_label_is_refused(ledger: CourseLedger) -> None:
    give(ledger, 1)
    stranger = dataclasses.replace(PLAN, sop_instance_uid="1.2.3.4")
    with pytest.raises(Refused, match=f"one of patient {WHO}, this file says {OTHER.pseudonym(SIMULATED_KEY)}"):
        enter(ledger, 2, plan=stranger, patient=OTHER)
    assert enter(ledger, 2, plan=stranger, patient=OTHER, labels_unique=False).fraction == 1


def test_one_uid_never_means_two_patients_whatever_labels_may(ledger: CourseLedger) -> None:
    give(ledger, 1)
    with pytest.raises(Refused, match="right file for the patient"):
        enter(ledger, 2, patient=OTHER, labels_unique=False)


def test_a_changed_plan_needs_a_uid_of_its_own(ledger: CourseLedger) -> None:
    give(ledger, 1)
    field = dataclasses.replace(PLAN.fields[0], meterset=PLAN.fields[0].meterset * 1.1)
    changed = dataclasses.replace(PLAN, fields=(field, *PLAN.fields[1:]))
    with pytest.raises(Refused, match="another content"):
        enter(ledger, 2, plan=changed)
    assert enter(ledger, 2, plan=dataclasses.replace(changed, sop_instance_uid="1.2.3.5")).fraction == 1


def test_a_course_is_not_exceeded_by_what_single_fractions_gave_too_much(ledger: CourseLedger) -> None:
    plan = dataclasses.replace(PLAN, fractions_planned=2)
    entry = enter(ledger, 1, plan=plan)
    ledger.book(entry.treatment, "completed", [whole(1.05)], "00")
    with pytest.raises(Refused, match="more than the course's 2 x"):
        enter(ledger, 2, plan=plan)


def test_every_spot_of_a_patient_can_be_looked_up(ledger: CourseLedger) -> None:
    give(ledger, 1)
    give(ledger, 2)
    spots = ledger.spots(WHO)
    assert len(spots) == sum(m > 0 for f in PLAN.fields for layer in f.layers for m in layer.meterset)
    assert {s["fractions"] for s in spots} == {2}
    assert spots[0]["meterset"] == pytest.approx(2 * PLAN.fields[0].layers[0].meterset[0])


def test_names_are_in_the_patients_table_alone(ledger: CourseLedger, tmp_path: Path) -> None:
    give(ledger, 1)
    said = repr((ledger.fractions(), ledger.beams(), ledger.spots(WHO)))
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert "patient" in tables
        for table in set(tables) - {"patient"}:
            said += repr(db.execute(f"SELECT * FROM {table}").fetchall())
    assert PATIENT.id not in said
    assert PATIENT.name not in said
    assert (tmp_path / "ledger.sqlite").stat().st_mode & 0o077 == 0


def test_a_ledger_that_was_changed_in_the_middle_of_an_entry_is_as_before(
    ledger: CourseLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(ledger, 1)
    before = ledger.fractions()
    bad = whole()
    bad.spots["spot"][1] = bad.spots["spot"][0]  # the same spot twice
    bad.spots["layer"][1] = bad.spots["layer"][0]
    with pytest.raises(sqlite3.IntegrityError):
        ledger.book("t1", "completed", [bad], "00")
    assert ledger.fractions() == before
    assert len(ledger.spots(WHO)) == len(whole().spots)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no ledger at all, but long enough to be looked at" * 50, "damaged, or no ledger"), (None, "no ledger of")],
)
def test_another_file_is_no_ledger(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "other.sqlite"
    if content is None:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE x (y)")
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        CourseLedger(path)


def test_a_damaged_ledger_is_named_and_its_backup_opens(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with CourseLedger(path) as ledger:
        give(ledger, 1)
    path.with_name("ledger.sqlite.backup").unlink()
    with CourseLedger(path) as ledger:
        give(ledger, 2)  # the day's backup was gone: what was before this change is backed up
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)
    with pytest.raises(BadInput, match="damaged"):
        CourseLedger(path)
    with CourseLedger(path.with_name("ledger.sqlite.backup")) as backup:
        assert [f["fraction"] for f in backup.fractions()] == [1]
