"""The ledger around a delivery: entered before the first beam, booked from the journal at the end, or again.

A room in which every device is real has one ledger, named by its site file, and every run there is entered. Whatever
has a simulated device in it is kept apart: in the treatment directory, or in a file that the caller names.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.ledger.booking import book_journal, treatment_id
from controller.ledger.course import Candidate, CourseLedger
from controller.plan.loaded import LoadedPlan
from controller.record.carried import read_carried
from controller.record.journal_reader import read_journal
from controller.record.pseudonym import pseudonym_key
from drivers.errors import BadInput, Refused, SpotwiseError
from sites.schema import DEVICE_NAMES, Site

FILE = "ledger.sqlite"


def ledger_path(site: Site, out: Path, asked: Path | None) -> Path:
    """Where a run in this room is entered. Raises `Refused` where real and simulated would meet."""
    own = None if site.record.ledger_file is None else Path(site.record.ledger_file)
    simulated = [name for name in DEVICE_NAMES if getattr(site.devices, name).kind == "simulated"]
    if simulated:
        if asked is not None and own is not None and asked.resolve() == own.resolve():
            raise Refused(
                f"{asked}: the ledger of site {site.name} takes runs alone in which every device is real; "
                f"simulated here: {', '.join(simulated)}; give another --ledger, or none"
            )
        return out / FILE if asked is None else asked
    if own is None:
        raise Refused(
            f"site {site.name}: every device is real, and there is no record.ledger_file: nobody would know which "
            "fractions were given; name the room's ledger in the site file"
        )
    if asked is not None and asked.resolve() != own.resolve():
        raise Refused(f"{asked}: every device of site {site.name} is real: its runs go into its own ledger, {own}")
    return own


def candidate(site: Site, loaded: LoadedPlan, fraction: int | None) -> Candidate:
    """A fraction of a plan in a room; None: the one that is due."""
    return Candidate(
        loaded.plan,
        loaded.patient,
        pseudonym_key(site),
        any(device.kind == "simulated" for _, device in site.devices.items()),
        fraction,
        site.record.labels_unique,
    )


def fraction_due(path: Path, wanted: Candidate) -> int:
    """Number of the fraction that may be given now. Raises `Refused` with the reason where none may."""
    if not path.exists():
        # nothing is made before it is sure that something will be delivered
        if wanted.fraction not in (None, 1):
            raise Refused(f"plan {wanted.plan.label!r}: fraction {wanted.fraction} is not due yet; due is fraction 1")
        return 1
    with CourseLedger(path) as ledger:
        return ledger.due(wanted)


def enter(path: Path, out: Path, wanted: Candidate, header: dict[str, Any]) -> None:
    """Enter a treatment before its first beam; one that is in already goes on. Raises `Refused`, `BadInput`."""
    treatment = treatment_id(header)
    with _open(path, out) as ledger:
        if ledger.entry(treatment) is not None:
            ledger.reopen(treatment, str(out.absolute()))
            return
        ledger.admit(wanted, treatment=treatment, directory=str(out.absolute()), begun=datetime.now(UTC).isoformat())


def settle(path: Path, out: Path, *, refused: bool) -> None:
    """After a part: book what its journal says, or forget a fraction that was refused before anything moved.

    Raises `Refused`, `BadInput`.
    """
    with read_journal(out / "journal.bin") as journal, _open(path, out) as ledger:
        if refused and len(journal.parts) == 1 and len(journal.visits) == 0:
            ledger.withdraw(treatment_id(journal.header))
        else:
            book_journal(ledger, journal)


def withdraw_unbegun(path: Path, out: Path, header: dict[str, Any]) -> None:
    """Forget a fraction whose run ended in an error before any field was begun: nothing can have been delivered."""
    try:
        begun = read_carried(out / "journal.bin").baseline is not None
    except BadInput:
        begun = (out / "journal.bin").exists()  # a damaged journal proves nothing
    if not begun:
        with _open(path, out) as ledger:
            ledger.withdraw(treatment_id(header))


def book_again(directory: Path) -> list[str]:
    """Book a directory's journal where run.json says that it was entered; returns what was in the way, in words.

    What is booked already leaves the ledger's file untouched.
    """
    path = ledger_named(directory)
    if path is None:
        return []
    try:
        with read_journal(directory / "journal.bin") as journal, _open(path, directory, make=False) as ledger:
            if ledger.entry(treatment_id(journal.header)) is None and len(journal.visits) == 0:
                return []  # withdrawn: it was refused before anything moved
            book_journal(ledger, journal)
    except SpotwiseError as error:
        return [str(error)]
    return []


def ledger_named(directory: Path) -> Path | None:
    """The ledger that the newest run.json of a treatment directory names; None: none."""
    found = newest_run(directory).get("ledger")
    return directory / found if isinstance(found, str) else None


def newest_run(directory: Path) -> dict[str, Any]:
    """run.json of the last part; empty where there is none."""
    numbered = {int(p.stem[4:]): p for p in directory.glob("run-*.json") if p.stem[4:].isdigit()}
    newest = numbered[max(numbered)] if numbered else directory / "run.json"
    try:
        found = json.loads(newest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _open(path: Path, out: Path, *, make: bool = True) -> CourseLedger:
    # one that lives in the treatment's own directory is of this treatment alone: the journal is its backup
    return CourseLedger(path, make=make, backups=path.parent.resolve() != out.resolve())
