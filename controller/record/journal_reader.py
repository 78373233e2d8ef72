"""Reads `journal.bin`, believing nothing: every CRC, every sequence number and the whole hash chain are checked.

A journal may end in the middle of a record (the process or the power died while it was written): that torn tail
is left out and stated in `Journal.torn`. Damage anywhere else raises `BadInput` with offset and record number.
A journal has parts: each HEADER record begins one (a resumed treatment continues in the same file). The file is
mapped, not loaded, so that hours of log fit; `rows()` yields it in blocks.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.machine.program import VISIT_PLAN_DTYPE
from controller.record.journal_format import (
    CRC,
    FILE_HEADER,
    GENESIS,
    HASH_BYTES,
    HEAD,
    HEAD_BYTES,
    TAIL_BYTES,
    RecordType,
    version_of,
)
from controller.record.schema import ADDED_IN_2, ROW_DTYPE, VISIT_DTYPE, VISIT_DTYPE_1
from drivers.errors import BadInput

_KINDS = frozenset(int(kind) for kind in RecordType)


@dataclass(frozen=True, slots=True)
class Record:
    """Where one record is and what kind it is; its payload is read on demand."""

    sequence: int
    kind: RecordType
    t_ns: int
    offset: int
    """Of the record's first byte in the file."""
    length: int
    """Bytes of the payload."""
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """What was downloaded for one layer and read back."""

    t_ns: int
    head: dict[str, Any]
    visits: NDArray[np.void]
    """`VISIT_PLAN_DTYPE`."""


@dataclass(frozen=True, slots=True)
class _Scan:
    """What a walk through the file found."""

    records: list[Record]
    torn: str | None
    good_bytes: int
    last_hash: bytes


class Part:
    """One part of a treatment: from a HEADER record to the next one or the end of the file."""

    def __init__(self, journal: Journal, records: list[Record]) -> None:
        self._journal = journal
        self.records = records

    @cached_property
    def header(self) -> dict[str, Any]:
        """The HEADER record."""
        return self._journal.json(self.records[0])

    @cached_property
    def number(self) -> int:
        """Number of this part, from 1, as its header says."""
        return int(self.header["part"])

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """All events in order."""
        return [self._journal.json(r) for r in self.records if r.kind is RecordType.EVENT]

    @cached_property
    def programs(self) -> list[Program]:
        """All layer programs in order; a layer downloaded twice (resume) appears twice."""
        found = []
        for record in self.records:
            if record.kind is RecordType.PROGRAM:
                head, _, rows = self._journal.payload(record).partition(b"\n")
                found.append(
                    Program(
                        record.t_ns,
                        self._journal.parse(head, record),
                        self._journal.table(rows, VISIT_PLAN_DTYPE, record),
                    )
                )
        return found

    @cached_property
    def visits(self) -> NDArray[np.void]:
        """All visits that this part delivered, `VISIT_DTYPE`, whoever booked them; each once, as booked last.

        Of a part that nobody ever closed also those that only the frames showed; see `seen_only`.
        """
        booked = self._journal.booked
        booked = booked[booked["part"] == self.number]
        return booked if len(self.seen_only) == 0 else np.concatenate([booked, self.seen_only])

    @cached_property
    def seen_only(self) -> NDArray[np.void]:
        """Visits that the frames showed before the run ended without closing the part, and that nobody booked since."""
        if self.settled:
            return np.zeros(0, VISIT_DTYPE)
        seen = self.table_of(RecordType.SEEN)
        return seen[~np.isin(_keys(seen), _keys(self._journal.booked))]

    @property
    def settled(self) -> bool:
        """Closed by its END record, or by a later part that reconciled it with the hardware."""
        return self.end is not None or self.number <= self._journal.settled_until

    def table_of(self, kind: RecordType) -> NDArray[np.void]:
        """All rows of the records VISITS or SEEN."""
        records = [r for r in self.records if r.kind is kind]
        tables = []
        # Joined as bytes: numpy takes 50 us to concatenate each structured array, and a journal has thousands.
        for version, group in groupby(records, lambda record: record.version):
            dtype = VISIT_DTYPE if version == 2 else VISIT_DTYPE_1
            same = list(group)
            for record in same:
                self._journal.whole_rows(record.length, dtype, record)
            rows = np.frombuffer(b"".join(map(self._journal.payload, same)), dtype)
            tables.append(rows if version == 2 else _of_version_1(rows))
        return tables[0] if len(tables) == 1 else np.concatenate([np.zeros(0, VISIT_DTYPE), *tables])

    def rows(self) -> Iterator[NDArray[np.void]]:
        """Yield the log in blocks of `ROW_DTYPE`."""
        for record in self.records:
            if record.kind is RecordType.ROWS:
                yield self._journal.table(self._journal.payload(record), ROW_DTYPE, record)

    @property
    def row_count(self) -> int:
        """Number of rows of the log."""
        return sum(r.length // ROW_DTYPE.itemsize for r in self.records if r.kind is RecordType.ROWS)

    @cached_property
    def end(self) -> dict[str, Any] | None:
        """The END record; None: the part was never closed (crash, or still running)."""
        last = self.records[-1]
        return self._journal.json(last) if last.kind is RecordType.END else None


class Journal:
    """A verified journal, open for reading. Made by `read_journal`; a context manager."""

    def __init__(self, path: Path, data: mmap.mmap | bytes, scan: _Scan) -> None:
        self.path = path
        self.records = records = scan.records
        self.torn = scan.torn
        """What was left out at the end, in words; None: nothing."""
        self.good_bytes = scan.good_bytes
        """Bytes up to the end of the last whole record."""
        self.last_hash = scan.last_hash
        """SHA-256 chain over everything up to there: the journal's fingerprint."""
        self._data = data
        starts = [i for i, r in enumerate(records) if r.kind is RecordType.HEADER]
        self.parts = [Part(self, records[a:b]) for a, b in pairwise([*starts, len(records)])]

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    @property
    def header(self) -> dict[str, Any]:
        """HEADER of the first part. Raises `BadInput` where there is none."""
        if not self.parts:
            raise BadInput(f"{self.path}: no HEADER record: nothing was recorded before the run ended")
        return self.parts[0].header

    @cached_property
    def booked(self) -> NDArray[np.void]:
        """Rows of all VISITS records; of those with the same part, field and visit the last one."""
        rows = np.concatenate([np.zeros(0, VISIT_DTYPE), *(_owned(p) for p in self.parts)])
        last = len(rows) - 1 - np.unique(_keys(rows)[::-1], return_index=True)[1]
        return rows if len(last) == len(rows) else rows[np.sort(last)]

    @cached_property
    def settled_until(self) -> int:
        """Number of the last part that a later one reconciled with counters and rings; 0: none."""
        return max(
            (
                int(event["part"])
                for part in self.parts[1:]
                for event in part.events
                if event["event"] == "reconciliation" and event["verdict"] != "dispute"
            ),
            default=0,
        )

    @property
    def events(self) -> list[dict[str, Any]]:
        """Events of all parts."""
        return [event for part in self.parts for event in part.events]

    @property
    def programs(self) -> list[Program]:
        """Programs of all parts."""
        return [program for part in self.parts for program in part.programs]

    @cached_property
    def visits(self) -> NDArray[np.void]:
        """Visits of all parts, `VISIT_DTYPE`."""
        return np.concatenate([np.zeros(0, VISIT_DTYPE), *(part.visits for part in self.parts)])

    def rows(self) -> Iterator[NDArray[np.void]]:
        """Rows of all parts, in blocks."""
        for part in self.parts:
            yield from part.rows()

    @property
    def row_count(self) -> int:
        """Rows of all parts."""
        return sum(part.row_count for part in self.parts)

    @property
    def end(self) -> dict[str, Any] | None:
        """END of the last part, or None."""
        return self.parts[-1].end if self.parts else None

    def payload(self, record: Record) -> bytes:
        """Payload of a record."""
        start = record.offset + HEAD_BYTES
        return self._data[start : start + record.length]

    def json(self, record: Record) -> dict[str, Any]:
        """Payload of a JSON record."""
        return self.parse(self.payload(record), record)

    def parse(self, text: bytes, record: Record) -> dict[str, Any]:
        """JSON object in `text`; raises `BadInput` that names the record."""
        try:
            value = json.loads(text)
        except ValueError as error:
            raise BadInput(f"{self.path}: record {record.sequence} ({record.kind.name}): not JSON: {error}") from error
        if not isinstance(value, dict):
            raise BadInput(f"{self.path}: record {record.sequence} ({record.kind.name}): not a JSON object")
        return value

    def table(self, data: bytes, dtype: np.dtype[np.void], record: Record) -> NDArray[np.void]:
        """Rows of `dtype` in `data`; raises `BadInput` that names the record."""
        self.whole_rows(len(data), dtype, record)
        return np.frombuffer(data, dtype)

    def whole_rows(self, length: int, dtype: np.dtype[np.void], record: Record) -> None:
        """Raise `BadInput` unless `length` bytes are a whole number of rows."""
        if length % dtype.itemsize:
            raise BadInput(
                f"{self.path}: record {record.sequence} ({record.kind.name}): {length} bytes are no whole number of "
                f"{dtype.itemsize}-byte rows"
            )


def _of_version_1(rows: NDArray[np.void]) -> NDArray[np.void]:
    visits = np.zeros(len(rows), VISIT_DTYPE)
    for name in VISIT_DTYPE_1.names or ():
        visits[name] = rows[name]
    for name in ADDED_IN_2:
        visits[name] = np.nan
    return visits


def _owned(part: Part) -> NDArray[np.void]:
    """Rows of a part's VISITS records; those that name no part are its own."""
    rows = part.table_of(RecordType.VISITS)
    nobody = rows["part"] == 0
    if nobody.any():
        rows = rows.copy()
        rows["part"][nobody] = part.number
    return rows


def _keys(visits: NDArray[np.void]) -> NDArray[np.int64]:
    """One number for part, field and visit."""
    keys: NDArray[np.int64] = visits["visit"].astype(np.int64)
    return keys | visits["part"].astype(np.int64) << 48 | visits["field"].astype(np.int64) << 32


def read_journal(path: Path) -> Journal:
    """Open and verify a journal. Raises `BadInput`: no such file, no journal, or damaged before its end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            data: mmap.mmap | bytes = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    if data[: len(FILE_HEADER)] != FILE_HEADER:
        if FILE_HEADER.startswith(data[: len(FILE_HEADER)]):
            return Journal(path, data, _Scan([], f"{path}: torn inside the file header ({size} bytes)", 0, GENESIS))
        raise BadInput(f"{path}: not a Spotwise journal of version 1: starts with {bytes(data[:16]).hex()}")
    return Journal(path, data, _scan(path, data, _written(data)))


def _written(data: mmap.mmap | bytes) -> int:
    """Length without trailing zeros where these are many.

    A file system may give a file its length before its bytes. 32 zeros at the end are no record: it would
    end in a hash.
    """
    end = len(data)
    while end and not any(data[max(0, end - 4096) : end]):
        end = max(0, end - 4096)
    end = max(0, end - 4096) + len(data[max(0, end - 4096) : end].rstrip(b"\0"))
    return max(end, len(FILE_HEADER)) if len(data) - end >= HASH_BYTES else len(data)


def _scan(path: Path, data: mmap.mmap | bytes, size: int) -> _Scan:
    records: list[Record] = []
    digest = GENESIS
    offset = len(FILE_HEADER)
    with memoryview(data) as view:
        while offset < size:
            number = len(records)

            def damaged(what: str, offset: int = offset, number: int = number) -> BadInput:
                return BadInput(f"{path}: damaged at byte {offset}, record {number}: {what}")

            left = size - offset
            if left < HEAD_BYTES:
                return _Scan(records, _torn(path, records, offset, left), offset, digest)
            length, kind, version, sequence, t_ns = HEAD.unpack_from(view, offset)
            if zlib.crc32(view[offset : offset + HEAD.size]) != CRC.unpack_from(view, offset + HEAD.size)[0]:
                raise damaged("CRC of the record's head is wrong")
            total = HEAD_BYTES + length + TAIL_BYTES
            if left < total:
                return _Scan(records, _torn(path, records, offset, left), offset, digest)
            body = view[offset : offset + total - HASH_BYTES]
            if zlib.crc32(body[: -CRC.size]) != CRC.unpack_from(body, len(body) - CRC.size)[0]:
                raise damaged("CRC is wrong")
            if sequence != number:
                raise damaged(f"sequence {sequence}, wanted {number}: records are missing or exchanged")
            chain = hashlib.sha256(digest)
            chain.update(body)
            digest = chain.digest()
            if view[offset + total - HASH_BYTES : offset + total] != digest:
                raise damaged("the hash chain breaks here: this record or one before it was changed")
            if kind not in _KINDS or not 1 <= version <= version_of(RecordType(kind)):
                raise damaged(f"type {kind} version {version}: written by a newer Spotwise?")
            if number == 0 and kind != RecordType.HEADER:
                raise damaged("the first record is no HEADER")
            records.append(Record(number, RecordType(kind), t_ns, offset, length, version))
            offset += total
    torn = (
        None if size == len(data) else f"{path}: {len(data) - size} zero bytes after record {len(records) - 1} left out"
    )
    return _Scan(records, torn, offset, digest)


def _torn(path: Path, records: list[Record], offset: int, left: int) -> str:
    return (
        f"{path}: torn tail: {left} bytes at byte {offset} are the beginning of record {len(records)} that was never "
        f"finished, and are left out; the {len(records)} records before it are whole"
    )
