"""From a treatment's journal to its entry in the ledger: which treatment it is, and what each part gave each spot."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.ledger.course import SPOT_DTYPE, CourseLedger, Part
from controller.record.account import account
from controller.record.journal_format import canonical_json
from controller.record.journal_reader import Journal


def treatment_id(header: dict[str, Any]) -> str:
    """Name of a treatment for good: a hash of its first part's header."""
    return hashlib.sha256(canonical_json(header)).hexdigest()[:32]


def spots_given(visits: NDArray[Any]) -> NDArray[Any]:
    """Sum a part's visits (paintings, stretches) by spot, in the order field, layer, spot."""
    keys = np.stack([visits[name].astype(np.int64) for name in ("field", "layer", "spot")], axis=1)
    unique, at = np.unique(keys, axis=0, return_inverse=True)
    given = np.zeros(len(unique), SPOT_DTYPE)
    for column, name in enumerate(("field", "layer", "spot")):
        given[name] = unique[:, column]
    for name, column_of in (("particles", "particles_1"), ("meterset", "meterset_1")):
        np.add.at(given[name], at.reshape(-1), visits[column_of])
    for name in ("counts_1", "counts_2"):
        np.add.at(given[name], at.reshape(-1), visits[name].astype(np.int64))
    return given


def outcome_of(journal: Journal) -> str:
    """`completed`: every spot is, and the last part was closed or reconciled with the hardware; else `interrupted`."""
    if not journal.parts or not journal.parts[-1].settled:
        return "interrupted"
    return "completed" if all(field.complete for field in account(journal.parts)) else "interrupted"


def parts_of(journal: Journal) -> list[Part]:
    """What each part gave."""
    parts = []
    for part in journal.parts:
        outcome = "under way" if part.end is None else str(part.end["outcome"])
        parts.append(Part(part.number, str(part.header["operator"]), outcome, spots_given(part.visits)))
    return parts


def book_journal(ledger: CourseLedger, journal: Journal) -> str:
    """Book everything that a journal holds; returns the outcome. The same journal books the same, however often."""
    outcome = outcome_of(journal)
    ledger.book(treatment_id(journal.header), outcome, parts_of(journal), journal.last_hash.hex())
    return outcome


def entry_problems(ledger: CourseLedger, journal: Journal) -> list[str]:
    """In what a ledger's entry differs from the journal, in words."""
    treatment = treatment_id(journal.header)
    entry = ledger.entry(treatment)
    if entry is None:
        return [f"treatment {treatment} is not in it"]
    found = ledger.differences(treatment, parts_of(journal), journal.last_hash.hex())
    outcome = outcome_of(journal)
    if entry["outcome"] not in (outcome, "closed"):
        found.append(f"says {entry['outcome']!r}, the journal says {outcome!r}")
    fraction = journal.header.get("fraction")
    if fraction is not None and entry["fraction"] != fraction:
        found.append(f"says fraction {entry['fraction']}, the journal says {fraction}")
    return found
