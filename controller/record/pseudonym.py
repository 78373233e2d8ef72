"""The secret under which a room's patients get their pseudonyms.

Without it nobody can tell from a journal, a ledger's list or telemetry whom it is about, not even by trying names and
birth dates. A simulated room has a key that everybody knows: it treats nobody, and the same plan must give the
same bytes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from drivers.errors import BadInput, Refused
from sites.schema import Site

SIMULATED_KEY = b"spotwise: a simulated room treats nobody"
LEAST_BYTES = 16
MADE_BYTES = 32


def pseudonym_key(site: Site, *, make: bool = True) -> bytes:
    """Key of a room; made, for its owner alone, where the site names a file that does not exist (and `make`).

    Raises `Refused`: a room with a real device names no file, or others can read it. Raises `BadInput`: unreadable.
    """
    named = site.record.pseudonym_key_file
    if named is None:
        if site.all_simulated:
            return SIMULATED_KEY
        raise Refused(
            f"site {site.name} has real devices, and no record.pseudonym_key_file: patients would be known by a name "
            "that everybody can work out; name a file (it is made, and must be kept as long as the ledger)"
        )
    path = Path(named)
    try:
        if make and not path.exists():
            _make(path)
        mode = path.stat().st_mode & 0o777
        key = path.read_bytes()
    except OSError as error:
        raise BadInput(f"record.pseudonym_key_file {path}: {error.strerror}") from error
    if mode & 0o077:
        raise Refused(f"record.pseudonym_key_file {path}: mode {mode:o}: others can read it; chmod 600")
    if len(key) < LEAST_BYTES:
        raise BadInput(f"record.pseudonym_key_file {path}: {len(key)} bytes, wanted {LEAST_BYTES} or more")
    return key


def key_check(key: bytes) -> str:
    """What may be written down to recognise a key by: says nothing about it."""
    return hashlib.sha256(b"spotwise pseudonym key\0" + key).hexdigest()[:16]


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, secrets.token_bytes(MADE_BYTES))
        os.fsync(file)
    finally:
        os.close(file)
