"""What is taken out of a ledger: tables as CSV, and copies of the treatment records with a manifest of their hashes."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pydicom

from controller.ledger.booking import treatment_id
from controller.ledger.course import CourseLedger
from controller.record.journal_reader import read_journal
from controller.record.rebuild import SUMMARY
from drivers.errors import BadInput

MANIFEST = "manifest.json"


def write_csv(ledger: CourseLedger, folder: Path) -> None:
    """fractions.csv, beams.csv and spots.csv: one row each, patients by pseudonym. Raises `BadInput`."""
    spots = [{"pseudonym": who, **row} for who in ledger.pseudonyms() for row in ledger.spots(who)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("fractions", ledger.fractions()), ("beams", ledger.beams()), ("spots", spots)):
            with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else [])
                writer.writeheader()
                writer.writerows(rows)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror}") from error


def copy_records(ledger: CourseLedger, folder: Path) -> list[str]:
    """Copy every fraction's DICOM records; returns, in words, what was missing or is not what it was.

    The manifest names each copy, its SHA-256, its SOP instance and the treatment it belongs to.
    """
    missing: list[str] = []
    copied: list[dict[str, Any]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for row in ledger.fractions():
            copied += _copy(ledger, row, folder, missing)
        manifest = {"records": copied, "missing": missing}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror}") from error
    return missing


def _copy(ledger: CourseLedger, row: dict[str, Any], folder: Path, missing: list[str]) -> list[dict[str, Any]]:
    where = f"course {row['course']}, fraction {row['fraction']}"
    # a ledger that lives in its treatment's directory moves with it
    candidates = [Path(row["directory"]), ledger.path.parent]
    source = next((path for path in candidates if _is(path, row["treatment"])), None)
    if source is None:
        missing.append(f"{where}: {row['directory']}: no directory of treatment {row['treatment']}")
        return []
    try:
        listed = json.loads((source / SUMMARY).read_text(encoding="utf-8"))["files"]
        names = sorted(name for name in listed if name.endswith(".dcm"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing.append(f"{where}: {source / SUMMARY}: cannot be used: {error!r}; run spotwise report")
        return []
    copied = []
    for name in names:
        target = folder / f"course-{row['course']}" / f"fraction-{row['fraction']}" / name
        try:
            content = (source / name).read_bytes()
        except OSError as error:
            missing.append(f"{where}: {source / name}: {error.strerror}")
            continue
        digest = hashlib.sha256(content).hexdigest()
        if digest != listed[name]:
            missing.append(f"{where}: {source / name}: changed since it was made; not copied")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        copied.append(
            {
                "file": str(target.relative_to(folder)),
                "sha256": digest,
                "sop_instance_uid": str(pydicom.dcmread(target, stop_before_pixels=True).SOPInstanceUID),
                **{key: row[key] for key in ("course", "fraction", "treatment", "pseudonym", "outcome")},
            }
        )
    return copied


def _is(directory: Path, treatment: str) -> bool:
    try:
        with read_journal(directory / "journal.bin") as journal:
            return treatment_id(journal.header) == treatment
    except BadInput:
        return False
