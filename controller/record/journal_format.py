"""Bytes of `journal.bin`: how one record is packed, checked and chained to the one before.

A file header of 16 bytes, then records. Every record carries a CRC of its head (so that a damaged length is
damage and not an early end), a CRC-32 of everything before it, and a SHA-256 over the previous record's hash
and itself. The byte table is in docs/journal.md. CRCs find errors and the chain finds edits; neither proves
who wrote the file.
"""

from __future__ import annotations

import enum
import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from drivers.errors import SpotwiseError

MAGIC = b"SPWJRNL\n"
FILE_VERSION = 1
FILE_HEADER = MAGIC + struct.pack("<II", FILE_VERSION, 0)
RECORD_VERSION = 1

HEAD = struct.Struct("<IHHQq")
"""length of the payload, type, version, sequence, time ns."""
CRC = struct.Struct("<I")
HEAD_BYTES = HEAD.size + CRC.size
HASH_BYTES = 32
TAIL_BYTES = CRC.size + HASH_BYTES
MAX_PAYLOAD = 256 * 1024 * 1024
"""Far above any real record (a layer of 16,384 visits is 4 MB); a longer one is a defect."""

GENESIS = hashlib.sha256(FILE_HEADER).digest()
"""What the first record is chained to."""


class RecordType(enum.IntEnum):
    """Kinds of records; their payloads are described in `controller.record.schema`."""

    HEADER = 1
    EVENT = 2
    PROGRAM = 3
    VISITS = 4
    ROWS = 5
    END = 6
    SEEN = 7


class JournalError(SpotwiseError):
    """The journal was asked to hold something that it must not hold (NaN, unknown event, too long)."""


class JournalDiskError(JournalError):
    """The disk did not take the journal: full, gone, or failing. What was not written is still in memory."""

    exit_status = 4


def version_of(kind: RecordType) -> int:
    """Version in which a kind of record is written; readers take older ones too."""
    return 2 if kind in (RecordType.VISITS, RecordType.SEEN) else RECORD_VERSION


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes.

    Numpy scalars and arrays become plain numbers and lists. Raises `JournalError` for NaN, infinities and
    values that JSON has no word for.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError) as error:
        names = [str(key) for key, item in value.items() if not _is_json({"": item})]
        raise JournalError(
            f"journal: {', '.join(names) or 'a key'} of {sorted(map(str, value))} cannot be written as JSON: {error}; "
            "wanted finite numbers, text, lists and tables (leave out what was not measured)"
        ) from error


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _is_json(value: Mapping[str, Any]) -> bool:
    try:
        json.dumps(value, allow_nan=False, default=_plain)
    except (TypeError, ValueError):
        return False
    return True


def pack_record(kind: RecordType, sequence: int, t_ns: int, payload: bytes, previous: bytes) -> tuple[bytes, bytes]:
    """One record as bytes, and its hash for the next one. `previous`: hash of the record before, or `GENESIS`."""
    if len(payload) > MAX_PAYLOAD:
        raise JournalError(
            f"journal: {kind.name} record of {len(payload)} bytes, limit {MAX_PAYLOAD}; write it in pieces"
        )
    head = HEAD.pack(len(payload), kind, version_of(kind), sequence, t_ns)
    body = head + CRC.pack(zlib.crc32(head)) + payload
    body += CRC.pack(zlib.crc32(body))
    digest = hashlib.sha256(previous + body).digest()
    return body + digest, digest
