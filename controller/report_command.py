"""What `spotwise report` does before it makes the files again: the ledger hears what the journal says."""

from __future__ import annotations

import sys
from pathlib import Path

from controller.ledger.use import FILE, book_again
from controller.record.seal import file_sha256, read_seal


def book(directory: Path) -> tuple[str, ...]:
    """Book a directory's journal again, saying on stderr what was in the way.

    Returns the ledger's file where it lies in the directory, was as it had been sealed, and is now rightly another.
    """
    path = directory / FILE
    seal = read_seal(directory)
    before = file_sha256(path) if path.is_file() else None
    for problem in book_again(directory):
        print(f"spotwise: not booked: {problem}", file=sys.stderr)
    sealed = None if seal is None else seal["files"].get(FILE)
    changed = before is not None and path.is_file() and file_sha256(path) != before
    return (FILE,) if changed and sealed == before else ()
