"""What a course has been given, fraction by fraction, and whether one more may be: the rules and their reasons.

A fraction is entered before its first beam ('under way') and booked from its journal afterwards, as often as one likes:
booking is the same each time. A fraction that was begun and not completed bars the next one until it is resumed, or
closed by a named person.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.ledger.schema import back_up, backup_is_due, open_ledger
from controller.plan.model import PatientIdentity, Plan
from controller.record.pseudonym import key_check
from drivers.errors import BadInput, Refused

TOLERANCE = 0.01
"""Of the prescription of a whole course: rounding and the monitors' spread; a fraction has its own limits."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A fraction that is admitted."""

    course: int
    fraction: int
    treatment: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fraction that somebody wants to give."""

    plan: Plan
    patient: PatientIdentity
    key: bytes
    """Of the room's pseudonyms."""
    simulated: bool
    """Any device is."""
    fraction: int | None = None
    """None: the one that is due."""
    labels_unique: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a treatment, as its journal has it."""

    number: int
    operator: str
    outcome: str
    spots: NDArray[Any]
    """field, layer, spot, particles, meterset, counts_1, counts_2; one row a spot."""


SPOT_DTYPE = np.dtype(
    [
        ("field", "<i8"),
        ("layer", "<i8"),
        ("spot", "<i8"),
        ("particles", "<f8"),
        ("meterset", "<f8"),
        ("counts_1", "<i8"),
        ("counts_2", "<i8"),
    ]
)


class CourseLedger:
    """An open ledger; a context manager. Raises `BadInput` where the file is none."""

    def __init__(self, path: Path, *, make: bool = True, backups: bool = True) -> None:
        self.path = path
        self._backups = backups
        self._db = open_ledger(path, make=make)

    def __enter__(self) -> CourseLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _change(self, *, keep: bool = True) -> Iterator[sqlite3.Connection]:
        """Everything or nothing, and nobody else meanwhile; the day's first change leaves a backup."""
        try:
            known = self._db.execute("SELECT 1 FROM about").fetchone() is not None
            if keep and known and self._backups and backup_is_due(self.path):
                back_up(self._db, self.path)
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise BadInput(f"{self.path}: the ledger cannot be changed: {error}") from error
        try:
            yield self._db
        except sqlite3.OperationalError as error:
            self._db.execute("ROLLBACK")
            raise BadInput(f"{self.path}: the ledger cannot be changed: {error}") from error
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT" if keep else "ROLLBACK")

    def due(self, candidate: Candidate) -> int:
        """Number of the fraction that `admit` would enter. Raises `Refused` as that does, and changes nothing."""
        with self._change(keep=False) as db:
            return self._admissible(db, candidate)[1]

    def admit(self, candidate: Candidate, *, treatment: str, directory: str, begun: str) -> Entry:
        """Enter a fraction as under way, before its first beam.

        `treatment` names it for good. Raises `Refused` with the reason.
        """
        with self._change() as db:
            course, number = self._admissible(db, candidate)
            db.execute(
                "INSERT INTO fraction (course, fraction, treatment, directory, begun, outcome, simulated) "
                "VALUES (?, ?, ?, ?, ?, 'under way', ?)",
                (course, number, treatment, directory, begun, int(candidate.simulated)),
            )
            return Entry(course, number, treatment)

    def _admissible(self, db: sqlite3.Connection, candidate: Candidate) -> tuple[int, int]:
        self._of_this_room(db, candidate)
        plan = candidate.plan
        who = candidate.patient.pseudonym(candidate.key)
        course = self._course(db, plan, candidate.patient, who, candidate.labels_unique)
        due = self._due(db, course)
        number = due if candidate.fraction is None else candidate.fraction
        self._refuse_second(db, course, plan, number, due)
        self._refuse_beyond(db, course, plan, number)
        return course, number

    def _of_this_room(self, db: sqlite3.Connection, candidate: Candidate) -> None:
        """Real and simulated runs never share a ledger, nor do two keys: another one makes new patients of all."""
        found = db.execute("SELECT simulated, key_check FROM about").fetchone()
        check = key_check(candidate.key)
        if found is None:
            db.execute("INSERT INTO about VALUES (1, ?, ?)", (int(candidate.simulated), check))
            return
        if bool(found[0]) != candidate.simulated:
            kinds = ("real devices alone", "rooms with simulated devices")
            raise Refused(
                f"{self.path}: the ledger of {kinds[found[0]]}; a run in {kinds[candidate.simulated]} does not "
                "belong in it"
            )
        if found[1] != check:
            raise Refused(
                f"{self.path}: patients are known there under another key than this room's (check {found[1]}, this one "
                f"is {check}): with it every patient would be a new one; give the key file back"
            )

    @staticmethod
    def _course(db: sqlite3.Connection, plan: Plan, patient: PatientIdentity, who: str, labels_unique: bool) -> int:
        clashes = "label = ? OR sop_instance_uid = ?" if labels_unique else "? = '' OR sop_instance_uid = ?"
        other = db.execute(
            f"SELECT pseudonym FROM course WHERE pseudonym != ? AND ({clashes}) AND sop_instance_uid != ''",
            (who, plan.label, plan.sop_instance_uid),
        ).fetchone()
        if other is not None:
            raise Refused(
                f"plan {plan.label!r} is known to the ledger as one of patient {other[0]}, this file says {who}: "
                "is this the right file for the patient in the room?"
            )
        changed = db.execute(
            "SELECT plan_sha256 FROM course WHERE pseudonym = ? AND sop_instance_uid = ? AND fraction_group = ? "
            "AND plan_sha256 != ? AND sop_instance_uid != ''",
            (who, plan.sop_instance_uid, plan.fraction_group, plan.content_sha256()),
        ).fetchone()
        if changed is not None:
            raise Refused(
                f"plan {plan.label!r} has another content (SHA-256 {plan.content_sha256()[:16]}) than the one of the "
                f"same UID that was delivered before ({changed[0][:16]}); a changed plan needs a UID of its own"
            )
        person = (who, patient.name, patient.id, patient.birth_date)
        db.execute("INSERT OR IGNORE INTO patient VALUES (?, ?, ?, ?)", person)
        if db.execute("SELECT * FROM patient WHERE pseudonym = ?", (who,)).fetchone() != person:
            raise Refused(f"two patients have the pseudonym {who}: the ledger cannot tell them apart")
        db.execute(
            "INSERT OR IGNORE INTO course (pseudonym, label, sop_instance_uid, fraction_group, plan_sha256, "
            "fractions_planned) VALUES (?, ?, ?, ?, ?, ?)",
            (
                who,
                plan.label,
                plan.sop_instance_uid,
                plan.fraction_group,
                plan.content_sha256(),
                plan.fractions_planned,
            ),
        )
        course = int(
            db.execute(
                "SELECT course FROM course WHERE pseudonym = ? AND plan_sha256 = ?", (who, plan.content_sha256())
            ).fetchone()[0]
        )
        db.executemany(
            "INSERT OR IGNORE INTO beam VALUES (?, ?, ?, ?, ?, ?)",
            [(course, k, f.number, f.name, f.unit, f.meterset) for k, f in enumerate(plan.fields)],
        )
        return course

    @staticmethod
    def _due(db: sqlite3.Connection, course: int) -> int:
        return 1 + int(
            db.execute("SELECT coalesce(max(fraction), 0) FROM fraction WHERE course = ?", (course,)).fetchone()[0]
        )

    @staticmethod
    def _refuse_second(db: sqlite3.Connection, course: int, plan: Plan, number: int, due: int) -> None:
        open_ = db.execute(
            "SELECT fraction, outcome, directory FROM fraction WHERE course = ? "
            "AND outcome IN ('under way', 'interrupted')",
            (course,),
        ).fetchone()
        if open_ is not None:
            raise Refused(
                f"plan {plan.label!r}: fraction {open_[0]} was begun and not completed ({open_[1]}); finish it first: "
                f"spotwise resume {open_[2]} (or end it for good, by name and reason: spotwise ledger FILE --close)"
            )
        if number < due:
            outcome = db.execute(
                "SELECT outcome FROM fraction WHERE course = ? AND fraction = ?", (course, number)
            ).fetchone()
            state = "was given already" if outcome is not None else "was passed over"
            raise Refused(f"plan {plan.label!r}: fraction {number} {state}; due is fraction {due}")
        if number > due:
            raise Refused(f"plan {plan.label!r}: fraction {number} is not due yet; due is fraction {due}")

    def _refuse_beyond(self, db: sqlite3.Connection, course: int, plan: Plan, number: int) -> None:
        planned = plan.fractions_planned
        if planned is None:
            return
        if number > planned:
            raise Refused(f"plan {plan.label!r}: all {planned} fractions were given; there is no fraction {number}")
        for index, field in enumerate(plan.fields):
            given = float(
                db.execute(
                    "SELECT coalesce(sum(s.meterset), 0) FROM spot s JOIN fraction f USING (treatment) "
                    "WHERE f.course = ? AND s.field = ?",
                    (course, index),
                ).fetchone()[0]
            )
            limit = planned * field.meterset * (1 + TOLERANCE)
            if given + field.meterset > limit:
                raise Refused(
                    f"plan {plan.label!r}, beam {field.name!r}: {given:.4g} {field.unit} were given, with another "
                    f"{field.meterset:.4g} it would be more than the course's {planned} x {field.meterset:.4g}"
                )

    def book(self, treatment: str, outcome: str, parts: list[Part], journal_hash: str) -> None:
        """Book what a treatment's journal says, replacing what was booked of it before.

        Raises `Refused` where the treatment was never entered. What is there already leaves the file untouched.
        """
        entry = self.entry(treatment)
        if entry is None:
            raise Refused(f"{self.path}: treatment {treatment} was never entered; is this its ledger?")
        if entry["outcome"] in (outcome, "closed") and not self.differences(treatment, parts, journal_hash):
            return
        with self._change() as db:
            db.execute(
                "UPDATE fraction SET outcome = ? WHERE treatment = ? AND outcome != 'closed'", (outcome, treatment)
            )
            db.execute("DELETE FROM part WHERE treatment = ?", (treatment,))
            for part in parts:
                db.execute(
                    "INSERT INTO part VALUES (?, ?, ?, ?, ?, ?)",
                    (treatment, part.number, part.operator, part.outcome, len(part.spots), journal_hash),
                )
                db.executemany(
                    "INSERT INTO spot VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [(treatment, part.number, *row) for row in part.spots.tolist()],
                )

    def entry(self, treatment: str) -> dict[str, Any] | None:
        """Row of a treatment, or None."""
        rows = self._rows("SELECT * FROM fraction WHERE treatment = ?", (treatment,))
        return rows[0] if rows else None

    def differences(self, treatment: str, parts: list[Part], journal_hash: str) -> list[str]:
        """In what the booked parts differ from these, in words; empty: in nothing."""
        booked = self._rows("SELECT * FROM part WHERE treatment = ? ORDER BY part", (treatment,))
        found = []
        if [p["part"] for p in booked] != [p.number for p in parts]:
            found.append(f"has the parts {[p['part'] for p in booked]}, the journal {[p.number for p in parts]}")
        for row, part in zip(booked, parts, strict=False):
            said = (row["operator"], row["outcome"], row["spots"], row["journal_hash"])
            wanted = (part.operator, part.outcome, len(part.spots), journal_hash)
            if said != wanted:
                found.append(f"says of part {part.number} {said}, the journal {wanted}")
            spots = self._db.execute(
                "SELECT field, layer, spot, particles, meterset, counts_1, counts_2 FROM spot "
                "WHERE treatment = ? AND part = ? ORDER BY field, layer, spot",
                (treatment, part.number),
            ).fetchall()
            if spots != [tuple(spot) for spot in part.spots.tolist()]:
                found.append(f"has other doses for spots of part {part.number} than the journal")
        return found

    def reopen(self, treatment: str, directory: str) -> None:
        """An interrupted fraction goes on. Raises `Refused`: never entered, or closed."""
        with self._change() as db:
            found = db.execute(
                "SELECT fraction, outcome, closed_by, closed_why FROM fraction WHERE treatment = ?", (treatment,)
            ).fetchone()
            if found is None:
                raise Refused(f"{self.path}: treatment {treatment} was never entered; is this its ledger?")
            if found[1] == "closed":
                raise Refused(f"fraction {found[0]} was closed for good by {found[2]}: {found[3]}")
            db.execute(
                "UPDATE fraction SET outcome = 'under way', directory = ? WHERE treatment = ?", (directory, treatment)
            )

    def withdraw(self, treatment: str) -> None:
        """Forget a fraction that never had beam: refused before anything moved."""
        with self._change() as db:
            given = db.execute("SELECT count(*) FROM spot WHERE treatment = ?", (treatment,)).fetchone()[0]
            if given == 0:
                db.execute("DELETE FROM part WHERE treatment = ?", (treatment,))
                db.execute("DELETE FROM fraction WHERE treatment = ?", (treatment,))
                # a course of which nothing was given says nothing, and must not bar a corrected file
                db.execute("DELETE FROM beam WHERE course NOT IN (SELECT course FROM fraction)")
                db.execute("DELETE FROM course WHERE course NOT IN (SELECT course FROM fraction)")
                db.execute("DELETE FROM patient WHERE pseudonym NOT IN (SELECT pseudonym FROM course)")

    def close_fraction(self, treatment: str, operator: str, reason: str) -> None:
        """End a fraction that will not be completed, by name and reason. Raises `Refused`."""
        if not operator.strip() or not reason.strip():
            raise Refused("closing a fraction needs a named person and a reason")
        with self._change() as db:
            changed = db.execute(
                "UPDATE fraction SET outcome = 'closed', closed_by = ?, closed_why = ? WHERE treatment = ? "
                "AND outcome IN ('under way', 'interrupted')",
                (operator, reason, treatment),
            ).rowcount
            if not changed:
                raise Refused(f"{self.path}: treatment {treatment} is not an open fraction")

    def fractions(self) -> list[dict[str, Any]]:
        """All fractions of all courses, without names."""
        return self._rows(
            "SELECT c.course, c.pseudonym, c.label, c.fraction_group, c.fractions_planned, f.fraction, f.outcome, "
            "f.begun, f.directory, f.treatment, f.simulated, f.closed_by, f.closed_why, "
            "(SELECT count(*) FROM part p WHERE p.treatment = f.treatment) AS parts "
            "FROM fraction f JOIN course c USING (course) ORDER BY c.pseudonym, c.label, c.course, f.fraction"
        )

    def beams(self) -> list[dict[str, Any]]:
        """Meterset of every beam: planned a fraction, and delivered over the course."""
        return self._rows(
            "SELECT c.course, c.pseudonym, c.label, b.number, b.name, b.unit, b.meterset_planned, "
            "coalesce((SELECT sum(s.meterset) FROM spot s JOIN fraction f USING (treatment) "
            "WHERE f.course = b.course AND s.field = b.field), 0.0) AS meterset_delivered, "
            "(SELECT count(*) FROM fraction f WHERE f.course = b.course AND f.outcome = 'completed') AS fractions "
            "FROM beam b JOIN course c USING (course) ORDER BY c.pseudonym, c.label, c.course, b.field"
        )

    def spots(self, pseudonym: str) -> list[dict[str, Any]]:
        """Every spot of a patient, summed over parts and fractions: what a re-irradiation is planned from."""
        return self._rows(
            "SELECT c.course, c.label, b.number, b.name, b.unit, s.layer, s.spot, sum(s.particles) AS particles, "
            "sum(s.meterset) AS meterset, count(DISTINCT f.fraction) AS fractions "
            "FROM spot s JOIN fraction f USING (treatment) JOIN course c USING (course) "
            "JOIN beam b ON b.course = c.course AND b.field = s.field "
            "WHERE c.pseudonym = ? GROUP BY c.course, b.field, s.layer, s.spot "
            "ORDER BY c.label, c.course, b.field, s.layer, s.spot",
            (pseudonym,),
        )

    def pseudonyms(self) -> list[str]:
        """All patients."""
        return [row["pseudonym"] for row in self._rows("SELECT DISTINCT pseudonym FROM course ORDER BY pseudonym")]

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
        cursor = self._db.execute(query, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]
