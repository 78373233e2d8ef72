"""From a treatment's journal to its entry in the ledger: which treatment it is, and what each part gave each spot."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.ledger.course import SPOT_DTYPE, CourseLedger, Part
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


def book_journal(ledger: CourseLedger, journal: Journal) -> str:
    """Book everything that a journal holds; returns the outcome. The same journal books the same, however often."""
    parts = []
    for part in journal.parts:
        outcome = "under way" if part.end is None else str(part.end["outcome"])
        parts.append(Part(part.number, str(part.header["operator"]), outcome, spots_given(part.visits)))
    last = parts[-1].outcome if parts else "under way"
    outcome = {"completed": "completed", "under way": "interrupted"}.get(last, "interrupted")
    ledger.book(treatment_id(journal.header), outcome, parts, journal.last_hash.hex())
    return outcome
