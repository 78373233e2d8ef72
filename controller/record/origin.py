"""Whether a journal's own statements about plan, site, patient, code and ledger hold, as far as this PC can tell.

Each check gives problems (something is not true) and notes (it cannot be told here, or is worth knowing).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from controller.ledger.booking import entry_problems, treatment_id
from controller.ledger.course import CourseLedger
from controller.ledger.use import ledger_named, newest_run
from controller.plan.stored import plan_from_header
from controller.record.code_version import code_sha256
from controller.record.identity import NOBODY, read_identity
from controller.record.journal_reader import Journal
from controller.record.pseudonym import pseudonym_key
from drivers.errors import SpotwiseError
from sites.loader import load_site, site_sha256
from sites.schema import Site

PSEUDONYM_CHARACTERS = 18
"""Older journals have shorter ones, of an unkeyed hash."""


def statements(directory: Path, journal: Journal) -> tuple[list[str], list[str]]:
    """Problems and notes about everything that a journal says of its origin."""
    problems: list[str] = []
    notes: list[str] = []
    run = newest_run(directory)
    header = journal.header
    try:
        plan_from_header(header["plan"], str(header["plan_sha256"]))
    except (SpotwiseError, KeyError, TypeError, ValueError) as error:
        problems.append(f"{journal.path}: the plan in it is not the one that it names: {error}")
    site = _site(run, header, notes)
    for part in journal.parts:
        _same_site(journal, part.header, site, problems, notes)
    _same_patient(directory, header, site, problems, notes)
    _code(run, notes)
    _ledger(directory, journal, problems, notes)
    return problems, notes


def _site(run: dict[str, Any], header: dict[str, Any], notes: list[str]) -> Site | None:
    try:
        return load_site(str(run.get("site") or header["site"]["name"]))
    except SpotwiseError as error:
        notes.append(f"site not compared: {error}")
        return None


def _same_site(
    journal: Journal, header: dict[str, Any], site: Site | None, problems: list[str], notes: list[str]
) -> None:
    """The journal has the whole site but for its key: with the key of the site at hand it must give the hash."""
    stored = json.loads(json.dumps(header["site"]))
    wanted = header["site_sha256"]
    keys = {stored["permits"]["key_hex"], None if site is None else site.permits.key_hex}
    for key in keys:
        stored["permits"]["key_hex"] = key
        text = json.dumps(stored, sort_keys=True, separators=(",", ":"), allow_nan=False)
        if hashlib.sha256(text.encode()).hexdigest() == wanted:
            if site is not None and site_sha256(site) != wanted:
                notes.append(f"site {site.name} is not configured any more as in part {header['part']}")
            return
    if site is not None and site_sha256(site) == wanted:
        problems.append(f"{journal.path}: part {header['part']}: the site in it is not the one whose hash it names")
    else:
        notes.append(f"configuration of part {header['part']} not compared: the site at hand is another one")


def _same_patient(
    directory: Path, header: dict[str, Any], site: Site | None, problems: list[str], notes: list[str]
) -> None:
    said = str(header.get("patient", ""))
    if site is None or len(said) != PSEUDONYM_CHARACTERS:
        notes.append(f"{directory / 'identity.dcm'}: not compared with the journal's patient")
        return
    try:
        patient = read_identity(directory / "identity.dcm")
        who = patient.pseudonym(pseudonym_key(site, make=False))
    except SpotwiseError as error:
        notes.append(f"{directory / 'identity.dcm'}: not compared with the journal's patient: {error}")
        return
    if patient is NOBODY:
        notes.append(f"{directory / 'identity.dcm'}: was taken away: the records can be made without names alone")
    elif who != said:
        problems.append(f"{directory / 'identity.dcm'}: is {who}, the treatment is of {said}: another patient's")


def _code(run: dict[str, Any], notes: list[str]) -> None:
    made_by = run.get("code_sha256")
    if made_by is None:
        notes.append("run.json does not say which code delivered")
    elif made_by != code_sha256():
        notes.append(
            f"delivered by code {made_by[:16]}, this is {code_sha256()[:16]}: where files differ, the code may be why"
        )


def _ledger(directory: Path, journal: Journal, problems: list[str], notes: list[str]) -> None:
    path = ledger_named(directory)
    if path is None:
        notes.append("run.json names no ledger")
        return
    if not path.is_file():
        notes.append(f"ledger {path} is not here: its entry is not compared")
        return
    try:
        with CourseLedger(path, make=False) as ledger:
            if ledger.entry(treatment_id(journal.header)) is None and len(journal.visits) == 0:
                return  # refused before anything moved, and withdrawn
            problems += [f"{path}: {text}" for text in entry_problems(ledger, journal)]
    except SpotwiseError as error:
        problems.append(str(error))
