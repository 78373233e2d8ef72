"""The journal: the append-only file from which everything else about a treatment can be rebuilt.

`JournalWriter` makes records in memory, in the order of the calls, and hands the bytes on. With a real clock
they go to a thread of the writer's own, which writes them to the operating system at once (a killed process
loses next to nothing) and to the disk at `sync()` (the caller does that at the end of each layer, before
anything relies on it). The caller never waits for the disk except in `await sync()`. In virtual time the same
bytes are written in place, and the disk is waited for once, at `close()`: a virtual run can be repeated to the
byte, so a power cut loses nothing that matters. Equal calls give equal files. The log's rows are gathered into
records of `ROWS_PER_RECORD`; `flush()` and `sync()` close the open one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.machine.program import VISIT_PLAN_DTYPE, LayerProgram
from controller.record.disk import THE_DISK, Disk
from controller.record.journal_format import (
    FILE_HEADER,
    GENESIS,
    JournalDiskError,
    JournalError,
    RecordType,
    canonical_json,
    pack_record,
)
from controller.record.journal_reader import Journal, Part, Program, Record, read_journal
from controller.record.schema import EVENTS, ROW_DTYPE, VISIT_DTYPE
from drivers.errors import BadInput

__all__ = [
    "BACKLOG_LIMIT_BYTES",
    "ROWS_PER_RECORD",
    "Journal",
    "JournalDiskError",
    "JournalError",
    "JournalWriter",
    "Part",
    "Program",
    "Record",
    "RecordType",
    "program_head",
    "read_journal",
]

ROWS_PER_RECORD = 2500
"""Half a second of log: the most that a killed process loses of it where nobody calls `flush`."""
BACKLOG_LIMIT_BYTES = 64 * 1024 * 1024
"""Bytes that may wait for a disk that does not take them (two minutes of log); then `append` raises."""
WRITE_CHUNK_BYTES = 1024 * 1024
"""Bytes gathered before a write in place, where no loop runs or time is virtual."""


def program_head(program: LayerProgram) -> dict[str, Any]:
    """Return the numbers of a `LayerProgram` that hold for the whole layer, for `JournalWriter.program`."""
    return {f.name: getattr(program, f.name) for f in fields(program) if f.name != "visits"}


class JournalWriter:
    """Writes `journal.bin`; an existing journal is verified, its torn tail cut, and continued.

    Not for use from several threads at once. Raises `BadInput` where the existing file is no journal or is
    damaged, `JournalDiskError` where the disk refuses.
    """

    def __init__(self, path: Path, disk: Disk = THE_DISK) -> None:
        self.path = path
        self._disk = disk
        self.cut: str | None = None
        """What was cut from the end of an existing journal, in words; None: nothing."""
        self._sequence = 0
        self._hash = GENESIS
        self._rows: list[NDArray[np.void]] = []
        self._rows_waiting = 0
        self._buffer = bytearray()
        self._lock = threading.Lock()  # guards _buffer, between the caller and the writer's thread
        self._thread: ThreadPoolExecutor | None = None
        self._drain_queued = False  # a drain is waiting in the thread and will take what is in the buffer
        self._fault: OSError | None = None
        keep = 0
        if path.exists() and path.stat().st_size > 0:
            with read_journal(path) as journal:
                self.cut = journal.torn
                self._sequence = len(journal.records)
                self._hash = journal.last_hash
                keep = journal.good_bytes
        try:
            self._file = disk.open(path, keep)
        except OSError as error:
            raise JournalDiskError(
                f"{path}: cannot be opened for writing: {error.strerror}; check the directory"
            ) from error
        if keep == 0:
            self._buffer += FILE_HEADER

    @property
    def sequence(self) -> int:
        """Number of the next record; rows still being gathered will be one."""
        return self._sequence

    @property
    def fault(self) -> str | None:
        """Why the last write to the disk failed, or None."""
        return None if self._fault is None else f"{self.path}: {self._fault.strerror}"

    def change_disk(self, disk: Disk) -> Disk:
        """From now on write to this disk, under the open descriptor; returns the one before. For disks that fail."""
        before, self._disk = self._disk, disk
        return before

    def append(self, kind: RecordType, t_ns: int, payload: bytes) -> int:
        """Add a record; returns its sequence number. Raises `JournalError`, `JournalDiskError`; never waits."""
        if kind is not RecordType.ROWS:
            self._close_rows()
        return self._append(kind, t_ns, payload)

    def header(self, t_ns: int, header: Mapping[str, Any]) -> int:
        """Begin a part. No patient identity in here; see `schema` for the keys."""
        return self.append(RecordType.HEADER, t_ns, canonical_json(header))

    def event(self, t_ns: int, name: str, /, **values: Any) -> int:
        """Add an event of a kind in `schema.EVENTS`; NaN and infinities are refused."""
        if name not in EVENTS:
            raise JournalError(f"journal: unknown event {name!r}; wanted one of {', '.join(EVENTS)}")
        if clash := {"t_ns", "event"} & values.keys():
            raise JournalError(f"journal: event {name!r} must not have its own {sorted(clash)}")
        return self.append(RecordType.EVENT, t_ns, canonical_json({"t_ns": t_ns, "event": name, **values}))

    def program(self, t_ns: int, head: Mapping[str, Any], visits: NDArray[np.void]) -> int:
        """Add a layer's program as downloaded and read back; `head` as by `program_head`."""
        _check_dtype("program", visits, VISIT_PLAN_DTYPE)
        return self.append(RecordType.PROGRAM, t_ns, canonical_json(head) + b"\n" + visits.tobytes())

    def visits(self, visits: NDArray[np.void]) -> int | None:
        """Add delivered visits (`VISIT_DTYPE`, any number); the record's time is the last one's end."""
        _check_dtype("visits", visits, VISIT_DTYPE)
        if len(visits) == 0:
            return None
        return self.append(RecordType.VISITS, int(visits["t_end_ns"][-1]), visits.tobytes())

    def seen(self, visits: NDArray[np.void]) -> int | None:
        """Add visits as the frames showed them; what `visits` says of the same ones later takes their place."""
        _check_dtype("seen", visits, VISIT_DTYPE)
        if len(visits) == 0:
            return None
        return self.append(RecordType.SEEN, int(visits["t_end_ns"][-1]), visits.tobytes())

    def flush(self) -> None:
        """Hand the rows gathered so far on as a record of their own."""
        self._close_rows()

    def rows(self, rows: NDArray[np.void]) -> None:
        """Add rows of the log (`ROW_DTYPE`, any number); gathered, see `ROWS_PER_RECORD`."""
        _check_dtype("rows", rows, ROW_DTYPE)
        if len(rows) == 0:
            return
        self._rows.append(rows.copy())
        self._rows_waiting += len(rows)
        if self._rows_waiting >= ROWS_PER_RECORD:
            waiting = np.concatenate(self._rows)
            whole = len(waiting) // ROWS_PER_RECORD * ROWS_PER_RECORD
            for first in range(0, whole, ROWS_PER_RECORD):
                block = waiting[first : first + ROWS_PER_RECORD]
                self._append(RecordType.ROWS, int(block["t_ns"][-1]), block.tobytes())
            self._rows = [waiting[whole:]] if whole < len(waiting) else []
            self._rows_waiting = len(waiting) - whole

    def end(self, t_ns: int, totals: Mapping[str, Any]) -> int:
        """Close a part with its totals."""
        return self.append(RecordType.END, t_ns, canonical_json(totals))

    async def sync(self) -> None:
        """Return when all records so far are on the disk (virtual time: with the operating system).

        Raises `JournalDiskError`; the records stay in memory, and a later call tries again.
        """
        self._close_rows()
        if getattr(asyncio.get_running_loop(), "virtual", False):
            if self._disk.sync_in_virtual_time:
                self._write_out_and_sync()
            else:
                self._write_out()
        else:
            # The thread finishes what it began even if we are cancelled here: the file stays whole.
            await asyncio.shield(asyncio.wrap_future(self._worker().submit(self._write_out_and_sync)))
        self._raise_fault()

    def close(self) -> None:
        """Write everything, wait for the disk, close the file. Raises `JournalDiskError`. Waits: not during beam."""
        if self._file < 0:
            return
        try:
            self._close_rows()
            if self._thread is not None:
                self._thread.shutdown(wait=True)
                self._thread = None
            self._write_out_and_sync()
            self._raise_fault()
        finally:
            self._disk.close(self._file)
            self._file = -1

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, kind: RecordType, t_ns: int, payload: bytes) -> int:
        if self._file < 0:
            raise JournalError(f"{self.path}: {kind.name} record after close()")
        if self._fault is not None and len(self._buffer) + len(payload) > BACKLOG_LIMIT_BYTES:
            raise JournalDiskError(
                f"{self.path}: {len(self._buffer)} bytes wait for the disk, limit {BACKLOG_LIMIT_BYTES}; "
                f"last error: {self._fault.strerror}; free space or replace the disk, then resume"
            )
        sequence = self._sequence
        record, self._hash = pack_record(kind, sequence, t_ns, payload, self._hash)
        self._sequence += 1
        with self._lock:
            self._buffer += record
            waiting = len(self._buffer)
            queued = self._drain_queued
            self._drain_queued = _real_time()
        if _real_time():
            if not queued:
                self._worker().submit(self._write_out)
        elif waiting >= WRITE_CHUNK_BYTES:
            self._write_out()
        return sequence

    def _close_rows(self) -> None:
        if self._rows_waiting:
            block = np.concatenate(self._rows)
            self._rows = []
            self._rows_waiting = 0
            self._append(RecordType.ROWS, int(block["t_ns"][-1]), block.tobytes())

    def _worker(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        return self._thread

    def _write_out(self) -> None:
        """Give the buffer to the operating system; what it does not take stays, so that a retry continues exactly."""
        with self._lock:
            self._drain_queued = False
            chunk = bytes(self._buffer)
        written = 0
        try:
            while written < len(chunk):
                written += self._disk.write(self._file, memoryview(chunk)[written:])
            self._fault = None
        except OSError as error:
            self._fault = error
        with self._lock:
            del self._buffer[:written]

    def _write_out_and_sync(self) -> None:
        self._write_out()
        if self._fault is None:
            try:
                self._disk.sync(self._file)
            except OSError as error:
                self._fault = error

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise JournalDiskError(
                f"{self.path}: the disk did not take the journal: {self._fault.strerror}; {len(self._buffer)} bytes "
                "are still in memory; free space or replace the disk before going on"
            ) from self._fault


def _real_time() -> bool:
    """Return True inside a running loop whose time is real."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return False
    return not getattr(loop, "virtual", False)


def _check_dtype(what: str, array: NDArray[np.void], dtype: np.dtype[np.void]) -> None:
    if array.dtype != dtype or array.ndim != 1:
        raise BadInput(
            f"journal: {what}: wanted a one-dimensional array of {dtype.names}, got {array.ndim}-d {array.dtype}"
        )
